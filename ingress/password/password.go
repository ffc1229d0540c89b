// SPDX-License-Identifier: Apache-2.0

// Package password compares passwords with their hashes in the formats of Apache's htpasswd: bcrypt, apr1, MD5-crypt
// (which differs from apr1 only by its name), and SHA-1 with and without a salt.
package password

import (
	"crypto/md5"
	"crypto/sha1"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/bcrypt"
)

// MaxCost is the greatest cost of a bcrypt hash that is compared. It takes about a second of a processor.
const MaxCost = 14

// Check returns the reason for which a hash cannot be compared, or nil.
func Check(hash string) error {
	switch {
	case strings.HasPrefix(hash, "$2"):
		cost, err := bcrypt.Cost([]byte(hash))
		if err != nil {
			return errors.New("it is no hash of bcrypt's")
		}
		if cost > MaxCost {
			return fmt.Errorf("its bcrypt cost is %d, and more than %d would let requests use up the processors", cost, MaxCost)
		}
		return nil
	case strings.HasPrefix(hash, "$apr1$"), strings.HasPrefix(hash, "$1$"):
		if _, salt, sum, ok := cutMD5(hash); !ok || len(salt) > 8 || len(sum) != 22 {
			return errors.New("it is no hash of htpasswd's MD5 form")
		}
		return nil
	case strings.HasPrefix(hash, "{SHA}"), strings.HasPrefix(hash, "{SSHA}"):
		if sum, _ := sha(hash); len(sum) == 0 {
			return errors.New("it is no hash of htpasswd's SHA form")
		}
		return nil
	}
	return errors.New("its form is not one of bcrypt, apr1 and SHA")
}

// Verify reports whether a password has the given hash. It returns false for a hash that Check rejects.
func Verify(hash, password string) bool {
	if Check(hash) != nil {
		return false
	}
	switch hash[:2] {
	case "$2":
		return bcrypt.CompareHashAndPassword([]byte(hash), []byte(password)) == nil
	case "{S":
		sum, salt := sha(hash)
		got := sha1.Sum(append([]byte(password), salt...))
		return subtle.ConstantTimeCompare(got[:], sum) == 1
	}
	magic, salt, sum, _ := cutMD5(hash)
	return subtle.ConstantTimeCompare([]byte(md5Crypt(password, magic, salt)), []byte(sum)) == 1
}

// sha splits {SHA} and {SSHA} hashes. The sum is empty for other text.
func sha(hash string) (sum, salt []byte) {
	_, text, _ := strings.Cut(hash, "}")
	all, err := base64.StdEncoding.DecodeString(text)
	salted := strings.HasPrefix(hash, "{SSHA}")
	if err != nil || len(all) < sha1.Size || !salted && len(all) != sha1.Size || len(all) > 256 {
		return nil, nil
	}
	return all[:sha1.Size], all[sha1.Size:]
}

func cutMD5(hash string) (magic, salt, sum string, ok bool) {
	name, rest, _ := strings.Cut(strings.TrimPrefix(hash, "$"), "$")
	salt, sum, ok = strings.Cut(rest, "$")
	return "$" + name + "$", salt, sum, ok
}

// md5Crypt returns the sum of an MD5-crypt hash (Poul-Henning Kamp, FreeBSD 2.0). Its thousand rounds mix password and
// salt, depending on the round's number.
func md5Crypt(password, magic, salt string) string {
	inner := md5.Sum([]byte(password + salt + password))
	h := md5.New()
	h.Write([]byte(password + magic + salt))
	for left := len(password); left > 0; left -= len(inner) {
		h.Write(inner[:min(left, len(inner))])
	}
	for n := len(password); n > 0; n >>= 1 {
		if n&1 == 1 {
			h.Write([]byte{0})
		} else {
			h.Write([]byte(password[:1]))
		}
	}
	sum := h.Sum(nil)
	for round := range 1000 {
		h.Reset()
		first, last := sum, []byte(password)
		if round%2 == 1 {
			first, last = last, first
		}
		h.Write(first)
		if round%3 != 0 {
			h.Write([]byte(salt))
		}
		if round%7 != 0 {
			h.Write([]byte(password))
		}
		h.Write(last)
		sum = h.Sum(nil)
	}
	return encodeMD5(sum)
}

// encodeMD5 writes a sum in crypt's digits, three bytes at a time, the lowest bits first.
func encodeMD5(sum []byte) string {
	const digits = "./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	var out strings.Builder
	write := func(bits uint, n int) {
		for range n {
			out.WriteByte(digits[bits&63])
			bits >>= 6
		}
	}
	for i := range 5 {
		third := i + 12
		if i == 4 {
			third = 5
		}
		write(uint(sum[i])<<16|uint(sum[i+6])<<8|uint(sum[third]), 4)
	}
	write(uint(sum[11]), 2)
	return out.String()
}
