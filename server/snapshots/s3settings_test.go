// SPDX-License-Identifier: Apache-2.0

package snapshots

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestEachMemberHasItsOwnOrdinal: each server has an ordinal of its own among the members, in whichever order its store
// lists them, voters and others alike.
func TestEachMemberHasItsOwnOrdinal(t *testing.T) {
	members := []raftstore.Member{{Name: "b", Voter: true}, {Name: "a", Voter: true, Leader: true}, {Name: "d"}, {Name: "c", Voter: true}}
	for range len(members) {
		members = append(members[1:], members[0])
		for want, name := range []string{"a", "b", "c", "d"} {
			testenv.Equal(t, OrdinalAmong(members, name), (Ordinal{Number: want, Of: 4}), "among %v server %s has place", members, name)
		}
	}
	testenv.Equal(t, OrdinalAmong(members[:1], members[0].Name), (Ordinal{Of: 1}), "the only member has place")
	testenv.Equal(t, OrdinalAmong(nil, "a"), (Ordinal{Of: 1}), "without members a server has place")
}

// TestFlagsOverrideK3sS3Secret: the Secret that k3s' users have gives the settings for S3; what was given otherwise
// goes before.
func TestFlagsOverrideK3sS3Secret(t *testing.T) {
	in := metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: "s3"}
	client := fake.NewClientset(
		&corev1.Secret{ObjectMeta: in, Data: map[string][]byte{
			"etcd-s3-bucket": []byte("boats"), "etcd-s3-region": []byte("north"), "etcd-s3-endpoint-ca-name": []byte("s3"), "etcd-s3-access-key": []byte("a"), "etcd-s3-secret-key": []byte("s"),
		}},
		&corev1.ConfigMap{ObjectMeta: in, Data: map[string]string{"ca.crt": "-----BEGIN"}},
	)
	got, err := s3Values(t.Context(), client, "s3", map[string]string{config.S3Region: "south"})
	if err != nil || got[config.S3Bucket] != "boats" || got[config.S3Region] != "south" ||
		got[config.S3SecretKey] != "s" || got[config.S3EndpointCA] != "-----BEGIN\n" {
		t.Errorf("%q, %v", got, err)
	}
	testenv.WantError(t, testenv.Err(s3Values(t.Context(), client, "nothing", nil)), "reading the settings for S3")
}

// TestCommandsS3OptionsOverrideServers: what a command says of S3 goes before what its server was given.
func TestCommandsS3OptionsOverrideServers(t *testing.T) {
	yes, no := true, false
	for _, tt := range []struct {
		name  string
		own   S3Settings
		asked config.AskedS3
		want  string // bucket in region; empty for none
		err   string
	}{
		{name: "neither", own: S3Settings{}},
		{name: "the server's", own: S3Settings{On: true, Values: map[string]string{config.S3Bucket: "boats"}}, want: "boats in us-east-1"},
		{name: "the command's alone", asked: config.AskedS3{On: &yes,
			Values: map[string]string{config.S3Bucket: "planes"}}, want: "planes in us-east-1"},
		{name: "both", own: S3Settings{On: true, Values: map[string]string{config.S3Bucket: "boats", config.S3Region: "north"}},
			asked: config.AskedS3{Values: map[string]string{config.S3Bucket: "planes"}}, want: "planes in north"},
		{name: "not this time", own: S3Settings{On: true, Values: map[string]string{config.S3Bucket: "boats"}},
			asked: config.AskedS3{On: &no}},
		{name: "settings alone", asked: config.AskedS3{Values: map[string]string{config.S3Bucket: "planes"}}, err: "add --snapshot-s3"},
		{name: "no bucket", asked: config.AskedS3{On: &yes}, err: "bucket: is needed"},
	} {
		got, err := tt.own.For(WithQuery(t.Context(), tt.asked))
		switch {
		case tt.err != "":
			testenv.False(t, err == nil || !strings.Contains(err.Error(), tt.err), "%s: %v, want %q", tt.name, err, tt.err)
		case err != nil || (got == nil) != (tt.want == "") || got != nil && got.Bucket+" in "+got.Region != tt.want:
			t.Errorf("%s: %+v, %v, want %q", tt.name, got, err, tt.want)
		}
		testenv.False(t, len(tt.own.Values) > 0 && tt.own.Values[config.S3Bucket] != "boats",
			"%s: the server's own settings became %v", tt.name, tt.own.Values)
	}
}
