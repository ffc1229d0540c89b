// SPDX-License-Identifier: Apache-2.0

package snapshots

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/coracle-k8s/coracle/internal/config"
)

const (
	// partSize is the size in bytes of the parts of an upload. They are read from the disk one at a time. S3 requires
	// at least 5 MiB.
	partSize = 8 << 20
	// startSize is how many bytes of an object are read to recognize a snapshot and its header, which has some hundred
	// bytes.
	startSize = 4096
	// s3Attempts is how often a request is sent before it fails.
	s3Attempts = 4
	// s3Timeout limits the wait for a connection, and for the first byte of a response.
	s3Timeout = 30 * time.Second
)

// bucket is the S3 bucket in which snapshots are kept besides this machine.
type bucket struct {
	o      *config.S3
	client *minio.Client
	close  func()
}

func openBucket(o *config.S3) (*bucket, error) {
	t := &http.Transport{
		Proxy: http.ProxyFromEnvironment, DialContext: (&net.Dialer{Timeout: s3Timeout}).DialContext, TLSHandshakeTimeout: s3Timeout,
		ResponseHeaderTimeout: s3Timeout, MaxIdleConnsPerHost: 1, DisableCompression: true,
		TLSClientConfig: &tls.Config{
			MinVersion: tls.VersionTLS12, RootCAs: o.CA,
			InsecureSkipVerify: o.SkipVerify, //nolint:gosec // the user asked for it
		},
	}
	if o.Proxy != nil {
		t.Proxy = http.ProxyURL(o.Proxy)
	}
	creds := credentials.NewStaticV4(o.AccessKey, o.SecretKey, o.SessionToken)
	if o.AccessKey == "" {
		creds = credentials.NewEnvAWS()
	}
	lookup := map[string]minio.BucketLookupType{"dns": minio.BucketLookupDNS, "path": minio.BucketLookupPath}[o.Lookup] // auto otherwise
	c, err := minio.New(o.Endpoint, &minio.Options{
		Creds: creds, Secure: !o.Insecure, Transport: t, Region: o.Region, BucketLookup: lookup, MaxRetries: s3Attempts,
	})
	if err != nil {
		return nil, fmt.Errorf("S3 at %s: %w", o.Endpoint, err)
	}
	return &bucket{o: o, client: c, close: t.CloseIdleConnections}, nil
}

func (b *bucket) key(name string) string { return path.Join(b.o.Folder, name) }

func (b *bucket) location(name string) string { return "s3://" + path.Join(b.o.Bucket, b.key(name)) }

// explain adds a hint for the user to an error of S3.
func (b *bucket) explain(what string, err error) error {
	if err == nil {
		return nil
	}
	hint := ""
	switch minio.ToErrorResponse(err).Code {
	case minio.NoSuchBucket:
		hint = "; make the bucket " + b.o.Bucket + " first"
	case minio.AccessDenied, "InvalidAccessKeyId", "SignatureDoesNotMatch":
		hint = "; check the access key, the secret key and the bucket's policy"
	case "AuthorizationHeaderMalformed", "InvalidRegion":
		hint = "; check the region"
	case "RequestTimeTooSkewed":
		hint = "; this machine's clock is wrong"
	}
	return fmt.Errorf("S3 at %s: %s: %w%s", b.o.Endpoint, what, err, hint)
}

// upload copies a file to the bucket and checks that it arrived complete. Each part is sent with its MD5, which S3
// compares.
func (b *bucket) upload(ctx context.Context, name, file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	_, err = b.client.PutObject(ctx, b.o.Bucket, b.key(name), f, st.Size(), minio.PutObjectOptions{
		ContentType: "application/octet-stream", PartSize: partSize, NumThreads: 1, SendContentMd5: true,
	})
	if err != nil {
		return b.explain("saving "+name, err)
	}
	there, err := b.client.StatObject(ctx, b.o.Bucket, b.key(name), minio.StatObjectOptions{})
	if err == nil && there.Size != st.Size() {
		err = fmt.Errorf("%d bytes of %d arrived", there.Size, st.Size())
	}
	return b.explain("saving "+name, err)
}

// hasSnapshot says whether the bucket has a snapshot. Another snapshot of the same name is an error. It exists if two
// clusters share a folder and have servers of one name: with the same schedule these save at the same second.
func (b *bucket) hasSnapshot(ctx context.Context, i Info) (bool, error) {
	there, err := b.client.StatObject(ctx, b.o.Bucket, b.key(i.Name), minio.StatObjectOptions{})
	if isMissing(err) {
		return false, nil
	}
	if err != nil {
		return false, b.explain("looking for "+i.Name, err)
	}
	h, err := b.header(ctx, i.Name)
	switch {
	case errors.Is(err, ErrNoSnapshot), errors.Is(err, ErrDamaged), isMissing(err):
		return false, nil // left by an S3 server that stored it incompletely
	case err != nil:
		return false, b.explain("looking for "+i.Name, err)
	case h != i.Header:
		return false, fmt.Errorf("%s is another snapshot, of the cluster %.12s… at revision %d. It was left as it is: give this cluster "+
			"a folder of its own, --snapshot-s3-folder",
			b.location(i.Name), h.Cluster, h.Revision)
	}
	return there.Size == i.Size, nil
}

func isMissing(err error) bool {
	code := minio.ToErrorResponse(err).Code
	return code == minio.NoSuchKey || code == "NotFound"
}

// list returns the snapshots in the bucket whose names begin with begin and are wanted, the oldest first. It reads only
// the beginning of each.
func (b *bucket) list(ctx context.Context, begin string, wanted func(name string) bool) ([]Info, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the listing's goroutine
	prefix := b.o.Folder
	if prefix != "" {
		prefix += "/"
	}
	var out []Info
	for o := range b.client.ListObjects(ctx, b.o.Bucket, minio.ListObjectsOptions{Prefix: prefix + begin}) {
		if o.Err != nil {
			return nil, b.explain("listing", o.Err)
		}
		name := strings.TrimPrefix(o.Key, prefix)
		if !isName(name) || !wanted(name) {
			continue
		}
		info := Info{Name: name, Location: b.location(name), Size: o.Size}
		h, err := b.header(ctx, name)
		switch {
		case errors.Is(err, ErrNoSnapshot) || isMissing(err):
			continue
		case ctx.Err() != nil:
			return nil, b.explain("listing", ctx.Err())
		case err != nil:
			info.Problem = err.Error()
		default:
			info.Header = h
		}
		out = append(out, info)
	}
	sortByTime(out)
	return out, ctx.Err()
}

func (b *bucket) header(ctx context.Context, name string) (Header, error) {
	start, err := b.start(ctx, name)
	if err != nil {
		return Header{}, err
	}
	h, _, err := readHeader(bufio.NewReader(bytes.NewReader(start)))
	return h, err
}

// start returns the beginning of an object, which includes the header of a snapshot. It returns nothing for an empty
// object, which S3 reports as an error.
func (b *bucket) start(ctx context.Context, name string) ([]byte, error) {
	var o minio.GetObjectOptions
	if err := o.SetRange(0, startSize-1); err != nil {
		return nil, err
	}
	r, err := b.client.GetObject(ctx, b.o.Bucket, b.key(name), o)
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()                     // enough was read
	out, err := io.ReadAll(io.LimitReader(r, startSize)) // some servers and proxies ignore the range
	if minio.ToErrorResponse(err).Code == minio.InvalidRange {
		return nil, nil
	}
	return out, err
}

// delete removes a snapshot. It first checks that the object is one, since a folder may contain other objects, and that
// it exists, since S3 reports no error when a missing object is deleted.
func (b *bucket) delete(ctx context.Context, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	start, err := b.start(ctx, name)
	if isMissing(err) {
		return errNotThere
	}
	if err != nil {
		return b.explain("looking for "+name, err)
	}
	if _, _, err := readHeader(bufio.NewReader(bytes.NewReader(start))); errors.Is(err, ErrNoSnapshot) {
		return errNotThere
	}
	return b.explain("deleting "+name, b.client.RemoveObject(ctx, b.o.Bucket, b.key(name), minio.RemoveObjectOptions{}))
}

// prune removes the oldest snapshots of a series, as that of folder does. It requests only those objects of the bucket
// that have this server's names: there may be thousands of other objects, and each header costs a request.
func (b *bucket) prune(ctx context.Context, keep int, of series, made string) ([]string, error) {
	list, err := b.list(ctx, of.prefix(), of.matchesName)
	if err != nil {
		return nil, err
	}
	return removeEach(surplusSnapshots(list, keep, of.contains, made), func(name string) error { return b.delete(ctx, name) })
}

// Fetch copies a snapshot from S3 to a file in dir and returns its path.
func Fetch(ctx context.Context, o *config.S3, name, dir string) (file string, err error) {
	if err := checkName(name); err != nil {
		return "", err
	}
	b, err := openBucket(o)
	if err != nil {
		return "", err
	}
	defer b.close()
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	r, err := b.client.GetObject(ctx, o.Bucket, b.key(name), minio.GetObjectOptions{})
	if err != nil {
		return "", b.explain("fetching "+name, err)
	}
	defer func() { _ = r.Close() }() // enough was read
	if _, err := r.Stat(); err != nil {
		return "", b.explain("fetching "+name, err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("making the folder for snapshots: %w", err)
	}
	f, err := os.CreateTemp(dir, partialPrefix+"*")
	if err != nil {
		return "", fmt.Errorf("fetching %s: %w", name, err)
	}
	if _, err = io.Copy(f, r); err != nil {
		return "", errors.Join(b.explain("fetching "+name, err), f.Close(), os.Remove(f.Name()))
	}
	// A damaged file does not get the name: the next attempt would take it for the snapshot, and fetch nothing.
	err = f.Sync()
	if err == nil {
		_, err = verify(f)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return "", errors.Join(fmt.Errorf("fetching %s: %w; nothing was kept of it", b.location(name), err), os.Remove(f.Name()))
	}
	to := filepath.Join(dir, name)
	return to, os.Rename(f.Name(), to)
}
