// SPDX-License-Identifier: Apache-2.0

package console

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// claims are the claims of a token that is a JWT (RFC 7519). The console does not verify them. The API does, or the
// connection on which the token was received proves them.
type claims struct {
	Issuer    string      `json:"iss"`
	Subject   string      `json:"sub"`
	Nonce     string      `json:"nonce"`
	Expires   json.Number `json:"exp"`
	NotBefore json.Number `json:"nbf"`
	IssuedAt  json.Number `json:"iat"`
}

// claimsOf parses a token. It returns false when the token is not a JWT.
func claimsOf(token string) (claims, bool) {
	var c claims
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return c, false
	}
	text, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(parts[1], "="))
	if err == nil {
		err = json.Unmarshal(text, &c)
	}
	return c, err == nil
}

// claimTime returns the time of a claim. It returns the zero time where there is none.
func claimTime(n json.Number) time.Time {
	seconds, err := n.Float64()
	if err != nil || seconds <= 0 || seconds > 1<<40 {
		return time.Time{}
	}
	return time.Unix(int64(seconds), 0)
}

// tokenEnded reports whether a token that is a JWT says that it has expired.
func tokenEnded(token string, now time.Time) bool {
	c, isJWT := claimsOf(token)
	ends := claimTime(c.Expires)
	return isJWT && !ends.IsZero() && !now.Before(ends)
}

// whyRefused returns a sentence about why the API may have refused a token. The API itself says no more than 401.
func whyRefused(token string, now time.Time) string {
	const again = "Log in with a new one"
	c, isJWT := claimsOf(token)
	ends, begins := claimTime(c.Expires), claimTime(c.NotBefore)
	if begins.IsZero() {
		begins = claimTime(c.IssuedAt)
	}
	at := func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 MST") }
	switch {
	case isJWT && !ends.IsZero() && !now.Before(ends):
		return fmt.Sprintf("This token ended at %s. The server's clock has %s. %s.", at(ends), at(now), again)
	case isJWT && now.Before(begins):
		return fmt.Sprintf("This token is good from %s on, and the server's clock has %s: one of the clocks is wrong.", at(begins), at(now))
	}
	return "The cluster does not accept this token: it is of another cluster, its account was deleted, or it was changed on the way. " +
		again + "."
}
