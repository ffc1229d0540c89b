// SPDX-License-Identifier: Apache-2.0

// This file reads and checks the settings for keeping snapshots in an S3-compatible object store. They come from flags,
// or from a Secret, by the same names. It opens no connection.

package config

import (
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Settings for S3 by their names, without the --snapshot-s3- of flags and the etcd-s3- that k3s' Secrets have.
const (
	S3Endpoint       = "endpoint"
	S3EndpointCA     = "endpoint-ca"      // PEM, or PEM in base64
	S3EndpointCAName = "endpoint-ca-name" // in a Secret only: the ConfigMap with the certificate
	S3SkipVerify     = "skip-ssl-verify"
	S3AccessKey      = "access-key"
	S3SecretKey      = "secret-key"
	S3SessionToken   = "session-token"
	S3Bucket         = "bucket"
	S3Lookup         = "bucket-lookup-type"
	S3Region         = "region"
	S3Folder         = "folder"
	S3Proxy          = "proxy"
	S3Insecure       = "insecure"
	S3Timeout        = "timeout"
	S3Retention      = "retention"
)

// S3Defaults are the values of what is not set.
var S3Defaults = map[string]string{
	S3Endpoint: "s3.amazonaws.com", S3Region: "us-east-1", S3Lookup: "auto", S3Timeout: "5m", S3Retention: "5",
	S3SkipVerify: "false", S3Insecure: "false",
}

// S3Lookups say where the bucket's name goes.
var S3Lookups = []string{"auto", "dns", "path"}

// S3 says where snapshots are kept besides this machine.
type S3 struct {
	Endpoint, Bucket, Folder, Region   string
	AccessKey, SecretKey, SessionToken string
	// Lookup says where the bucket's name goes: "dns", in front of the endpoint's name, "path", behind it, or "auto".
	Lookup string
	// Insecure speaks HTTP, SkipVerify believes any certificate.
	Insecure, SkipVerify bool
	CA                   *x509.CertPool // nil means the machine's
	Proxy                *url.URL       // nil means what the environment says
	// Timeout bounds each snapshot's way there or back.
	Timeout time.Duration
	// Retention is how many scheduled ones of this server are kept there.
	Retention int
}

// AskedS3 is what one command says of S3 for itself, over what its server has.
type AskedS3 struct {
	// On says whether an object store is meant at all; nil leaves that to the server.
	On *bool `json:"on,omitempty"`
	// Values are settings by their names.
	Values map[string]string `json:"values,omitempty"`
}

// S3Error says which setting is wrong.
type S3Error struct {
	Name string
	Err  error
}

func (e *S3Error) Error() string { return e.Name + ": " + e.Err.Error() }
func (e *S3Error) Unwrap() error { return e.Err }

// ParseS3 reads settings. What is empty has its default. Each wrong one is an S3Error, joined.
func ParseS3(values map[string]string) (*S3, error) {
	var errs []error
	get := func(name string) string {
		if v := strings.TrimSpace(values[name]); v != "" {
			return v
		}
		return S3Defaults[name]
	}
	bad := func(name, format string, args ...any) {
		errs = append(errs, &S3Error{name, fmt.Errorf(format, args...)})
	}
	boolean := func(name string) bool {
		b, err := strconv.ParseBool(get(name))
		if err != nil {
			bad(name, "%q is neither true nor false", get(name))
		}
		return b
	}
	s := &S3{
		Endpoint: get(S3Endpoint), Bucket: get(S3Bucket), Region: get(S3Region), Lookup: get(S3Lookup),
		AccessKey: get(S3AccessKey), SecretKey: get(S3SecretKey), SessionToken: get(S3SessionToken),
		Insecure: boolean(S3Insecure), SkipVerify: boolean(S3SkipVerify),
	}
	var err error
	if err := checkS3Endpoint(s.Endpoint); err != nil {
		bad(S3Endpoint, "%w", err)
	}
	if s.Folder, err = s3Folder(get(S3Folder)); err != nil {
		bad(S3Folder, "%w", err)
	}
	if s.Bucket == "" {
		bad(S3Bucket, "is needed: the name of a bucket that there is")
	}
	if !slices.Contains(S3Lookups, s.Lookup) {
		bad(S3Lookup, "%q is none of %s", s.Lookup, strings.Join(S3Lookups, ", "))
	}
	if (s.AccessKey == "") != (s.SecretKey == "") {
		bad(S3AccessKey, "and %s go together; one of them is missing", S3SecretKey)
	}
	if s.Timeout, err = time.ParseDuration(get(S3Timeout)); err != nil || s.Timeout <= 0 {
		bad(S3Timeout, "%q is not a duration; write it like 5m", get(S3Timeout))
	}
	if s.Retention, err = strconv.Atoi(get(S3Retention)); err != nil || s.Retention < 1 {
		bad(S3Retention, "%q is not a number of snapshots, which is 1 or more", get(S3Retention))
	}
	if text := get(S3Proxy); text != "" {
		if s.Proxy, err = url.Parse(text); err != nil || s.Proxy.Host == "" {
			bad(S3Proxy, "it is not the address of a proxy; write it like http://10.0.0.9:3128")
		}
	}
	if text := get(S3EndpointCA); text != "" {
		if s.CA, err = certificates(text); err != nil {
			bad(S3EndpointCA, "%w", err)
		}
	}
	return s, errors.Join(errs...)
}

// checkS3Endpoint does not repeat what may be a password.
func checkS3Endpoint(text string) error {
	if strings.Contains(text, "@") {
		return fmt.Errorf("neither a user nor a password belongs in it: it is HOST or HOST:PORT, and they are %s and %s", S3AccessKey,
			S3SecretKey)
	}
	u, err := url.Parse("https://" + text)
	if err == nil && u.Host == text && u.Hostname() != "" && strings.HasPrefix(text, "[") == strings.Contains(u.Hostname(), ":") {
		if u.Port() == "" && !strings.HasSuffix(text, ":") {
			return nil
		}
		if _, err := strconv.ParseUint(u.Port(), 10, 16); err == nil {
			return nil
		}
	}
	return fmt.Errorf("%q is not of the form HOST or HOST:PORT, without https:// in front", text)
}

// s3Folder spells a folder in the only way in which objects are found by it again: S3 knows keys, and takes each letter
// of them as it is.
func s3Folder(text string) (string, error) {
	out := path.Clean(strings.Trim(text, "/"))
	switch {
	case out == ".":
		return "", nil
	case out == "..", strings.HasPrefix(out, "../"):
		return "", fmt.Errorf("%q leads out of the bucket", text)
	case strings.ContainsFunc(out, unicode.IsControl), !utf8.ValidString(out):
		return "", fmt.Errorf("%q has characters in it that are none of a folder's name", text)
	}
	return out, nil
}

// OverlayS3 puts settings over others. A session token goes with the keys that it was given for.
func OverlayS3(lower, upper map[string]string) map[string]string {
	out := map[string]string{}
	maps.Copy(out, lower)
	if key := upper[S3AccessKey]; key != "" && key != lower[S3AccessKey] {
		delete(out, S3SessionToken)
	}
	maps.Copy(out, upper)
	return out
}

// S3Errors takes the error of ParseS3 apart.
func S3Errors(err error) (out []*S3Error) {
	var one *S3Error
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range joined.Unwrap() {
			out = append(out, S3Errors(e)...)
		}
	} else if errors.As(err, &one) {
		out = append(out, one)
	}
	return out
}

// certificates reads PEM, or PEM in base64.
func certificates(text string) (*x509.CertPool, error) {
	data := []byte(text)
	if !strings.Contains(text, "-----BEGIN") {
		decoded, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(text), ""))
		if err != nil {
			return nil, errors.New("it is neither a certificate in PEM nor one in base64")
		}
		data = decoded
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		return nil, errors.New("there is no certificate in it")
	}
	return pool, nil
}

// S3FromSecret are the settings in a Secret, whose keys are those that k3s' users know, or the same without etcd-.
func S3FromSecret(data map[string][]byte) map[string]string {
	out := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(data)) { // etcd-s3-… before s3-… before snapshot-s3-…, which wins
		for _, prefix := range []string{"etcd-s3-", "s3-", "snapshot-s3-"} {
			if key, ok := strings.CutPrefix(name, prefix); ok {
				out[key] = string(data[name])
			}
		}
	}
	return out
}
