// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestTokenReviewIsOfItsToken: a TokenReview says whose its token is, and not who asks.
func TestTokenReviewIsOfItsToken(t *testing.T) {
	f := newFixture(t)
	s := f.start(t, f.options(t))
	c := client(t, s.admin())
	ctx := t.Context()
	ns := namespace(t, c)
	testenv.Must(c.CoreV1().ServiceAccounts(ns).Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "boat"}}, metav1.CreateOptions{}))(t)
	made := testenv.Must(c.CoreV1().ServiceAccounts(ns).CreateToken(ctx, "boat", &authenticationv1.TokenRequest{}, metav1.CreateOptions{}))(t)
	for token, want := range map[string]string{made.Status.Token: "system:serviceaccount:" + ns + ":boat", "wrong": ""} {
		review := &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token}}
		review = testenv.Must(c.AuthenticationV1().TokenReviews().Create(ctx, review, metav1.CreateOptions{}))(t)
		testenv.Equal(t, review.Status.User.Username, want, "the user of a token:")
		testenv.Equal(t, review.Status.Authenticated, want != "", "%q is good:", want)
	}
}
