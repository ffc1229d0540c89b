// SPDX-License-Identifier: Apache-2.0

// This file reads and checks the settings for storing snapshots in an S3-compatible object store. They have the same
// names as flags and in a Secret. The code opens no connection.

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

// Names of the settings for S3, without the prefix --snapshot-s3- of flags and the prefix etcd-s3- of k3s' Secrets.
const (
	S3Endpoint       = "endpoint"
	S3EndpointCA     = "endpoint-ca"      // PEM, or PEM in base64
	S3EndpointCAName = "endpoint-ca-name" // in a Secret only: the name of the ConfigMap with the certificate
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

// S3Defaults are the values of settings that are not set.
var S3Defaults = map[string]string{
	S3Endpoint: "s3.amazonaws.com", S3Region: "us-east-1", S3Lookup: "auto", S3Timeout: "5m", S3Retention: "5",
	S3SkipVerify: "false", S3Insecure: "false",
}

// S3Lookups are the values of the setting S3Lookup.
var S3Lookups = []string{"auto", "dns", "path"}

// S3 holds the settings of the object store for snapshots.
type S3 struct {
	Endpoint, Bucket, Folder, Region   string
	AccessKey, SecretKey, SessionToken string
	// Lookup says where the bucket's name is put: "dns" in front of the endpoint's name, "path" behind it, or "auto".
	Lookup string
	// Insecure means HTTP instead of HTTPS. SkipVerify accepts any certificate.
	Insecure, SkipVerify bool
	CA                   *x509.CertPool // nil means the machine's
	Proxy                *url.URL       // nil means the proxy of the environment
	// Timeout is the timeout of the transfer of each snapshot, in either direction.
	Timeout time.Duration
	// Retention is how many scheduled snapshots of this server are kept there.
	Retention int
}

// AskedS3 holds the S3 settings of one command, which override those of its server.
type AskedS3 struct {
	// On says whether the command uses an object store. nil means the server's setting.
	On *bool `json:"on,omitempty"`
	// Values are settings by their names.
	Values map[string]string `json:"values,omitempty"`
}

// S3Error is the error of one setting.
type S3Error struct {
	Name string
	Err  error
}

func (e *S3Error) Error() string { return e.Name + ": " + e.Err.Error() }
func (e *S3Error) Unwrap() error { return e.Err }

// ParseS3 parses and checks the settings. An empty setting has its default. The error joins an S3Error for each wrong
// setting.
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
		if s.CA, err = parseCertificates(text); err != nil {
			bad(S3EndpointCA, "%w", err)
		}
	}
	return s, errors.Join(errs...)
}

// checkS3Endpoint checks an endpoint. Its error does not repeat a text that may hold a password.
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

// s3Folder returns the canonical form of a folder. In S3, a folder is a part of an object's key, and each letter of a
// key counts. So objects are found again only by the same form.
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

// OverlayS3 overrides the settings in lower by those in upper. When upper has another access key, the session token of
// lower is dropped, because it belongs to lower's keys.
func OverlayS3(lower, upper map[string]string) map[string]string {
	out := map[string]string{}
	maps.Copy(out, lower)
	if key := upper[S3AccessKey]; key != "" && key != lower[S3AccessKey] {
		delete(out, S3SessionToken)
	}
	maps.Copy(out, upper)
	return out
}

// S3Errors splits the error of ParseS3 into its S3Errors.
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

// parseCertificates parses certificates in PEM, or in base64 of PEM.
func parseCertificates(text string) (*x509.CertPool, error) {
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

// S3FromSecret returns the settings in a Secret. Its keys are those of k3s, or the same without etcd-, or with the
// flags' prefix snapshot-s3-.
func S3FromSecret(data map[string][]byte) map[string]string {
	out := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(data)) { // in this order etcd-s3-… comes before s3-… and snapshot-s3-…; the last one wins
		for _, prefix := range []string{"etcd-s3-", "s3-", "snapshot-s3-"} {
			if key, ok := strings.CutPrefix(name, prefix); ok {
				out[key] = string(data[name])
			}
		}
	}
	return out
}
