// SPDX-License-Identifier: Apache-2.0

// Package s3settings reads and checks the settings for keeping snapshots in an S3-compatible object store. They come
// from flags, or from a Secret, by the same names. It opens no connection.
package s3settings

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
	Endpoint       = "endpoint"
	EndpointCA     = "endpoint-ca"      // PEM, or PEM in base64
	EndpointCAName = "endpoint-ca-name" // in a Secret only: the ConfigMap with the certificate
	SkipVerify     = "skip-ssl-verify"
	AccessKey      = "access-key"
	SecretKey      = "secret-key"
	SessionToken   = "session-token"
	Bucket         = "bucket"
	Lookup         = "bucket-lookup-type"
	Region         = "region"
	Folder         = "folder"
	Proxy          = "proxy"
	Insecure       = "insecure"
	Timeout        = "timeout"
	Retention      = "retention"
)

// Defaults are the values of what is not set.
var Defaults = map[string]string{
	Endpoint: "s3.amazonaws.com", Region: "us-east-1", Lookup: "auto", Timeout: "5m", Retention: "5",
	SkipVerify: "false", Insecure: "false",
}

// Lookups say where the bucket's name goes.
var Lookups = []string{"auto", "dns", "path"}

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

// Asked is what one command says of S3 for itself, over what its server has.
type Asked struct {
	// On says whether an object store is meant at all; nil leaves that to the server.
	On *bool `json:"on,omitempty"`
	// Values are settings by their names.
	Values map[string]string `json:"values,omitempty"`
}

// SettingError says which setting is wrong.
type SettingError struct {
	Name string
	Err  error
}

func (e *SettingError) Error() string { return e.Name + ": " + e.Err.Error() }
func (e *SettingError) Unwrap() error { return e.Err }

// Parse reads settings. What is empty has its default. Each wrong one is a SettingError, joined.
func Parse(values map[string]string) (*S3, error) {
	var errs []error
	get := func(name string) string {
		if v := strings.TrimSpace(values[name]); v != "" {
			return v
		}
		return Defaults[name]
	}
	bad := func(name, format string, args ...any) {
		errs = append(errs, &SettingError{name, fmt.Errorf(format, args...)})
	}
	boolean := func(name string) bool {
		b, err := strconv.ParseBool(get(name))
		if err != nil {
			bad(name, "%q is neither true nor false", get(name))
		}
		return b
	}
	s := &S3{
		Endpoint: get(Endpoint), Bucket: get(Bucket), Region: get(Region), Lookup: get(Lookup),
		AccessKey: get(AccessKey), SecretKey: get(SecretKey), SessionToken: get(SessionToken),
		Insecure: boolean(Insecure), SkipVerify: boolean(SkipVerify),
	}
	var err error
	if err := checkEndpoint(s.Endpoint); err != nil {
		bad(Endpoint, "%w", err)
	}
	if s.Folder, err = folder(get(Folder)); err != nil {
		bad(Folder, "%w", err)
	}
	if s.Bucket == "" {
		bad(Bucket, "is needed: the name of a bucket that there is")
	}
	if !slices.Contains(Lookups, s.Lookup) {
		bad(Lookup, "%q is none of %s", s.Lookup, strings.Join(Lookups, ", "))
	}
	if (s.AccessKey == "") != (s.SecretKey == "") {
		bad(AccessKey, "and %s go together; one of them is missing", SecretKey)
	}
	if s.Timeout, err = time.ParseDuration(get(Timeout)); err != nil || s.Timeout <= 0 {
		bad(Timeout, "%q is not a duration; write it like 5m", get(Timeout))
	}
	if s.Retention, err = strconv.Atoi(get(Retention)); err != nil || s.Retention < 1 {
		bad(Retention, "%q is not a number of snapshots, which is 1 or more", get(Retention))
	}
	if text := get(Proxy); text != "" {
		if s.Proxy, err = url.Parse(text); err != nil || s.Proxy.Host == "" {
			bad(Proxy, "it is not the address of a proxy; write it like http://10.0.0.9:3128")
		}
	}
	if text := get(EndpointCA); text != "" {
		if s.CA, err = certificates(text); err != nil {
			bad(EndpointCA, "%w", err)
		}
	}
	return s, errors.Join(errs...)
}

// checkEndpoint does not repeat what may be a password.
func checkEndpoint(text string) error {
	if strings.Contains(text, "@") {
		return fmt.Errorf("neither a user nor a password belongs in it: it is HOST or HOST:PORT, and they are %s and %s", AccessKey,
			SecretKey)
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

// folder spells a folder in the only way in which objects are found by it again: S3 knows keys, and takes each letter
// of them as it is.
func folder(text string) (string, error) {
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

// Over puts settings over others. A session token goes with the keys that it was given for.
func Over(lower, upper map[string]string) map[string]string {
	out := map[string]string{}
	maps.Copy(out, lower)
	if key := upper[AccessKey]; key != "" && key != lower[AccessKey] {
		delete(out, SessionToken)
	}
	maps.Copy(out, upper)
	return out
}

// Each takes the error of Parse apart.
func Each(err error) (out []*SettingError) {
	var one *SettingError
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range joined.Unwrap() {
			out = append(out, Each(e)...)
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

// FromSecret are the settings in a Secret, whose keys are those that k3s' users know, or the same without etcd-.
func FromSecret(data map[string][]byte) map[string]string {
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
