// SPDX-License-Identifier: Apache-2.0

package console

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	serializer "k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/coracle-k8s/coracle/internal/convert"
)

// maxUserMessages limits the messages that are made of one error.
const maxUserMessages = 50

// userMessage is a reason why the API refuses a request, in words for users. field is the path of the field, or "".
type userMessage struct{ field, text string }

// messagesOf turns an error into short sentences.
func messagesOf(err error) []userMessage {
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return messagesOfText(err.Error())
	}
	s := status.Status()
	if strings.Contains(s.Message, noLeader) {
		return []userMessage{{"", noLeaderText}}
	}
	var out []userMessage
	if s.Details != nil {
		for _, c := range s.Details.Causes {
			switch {
			case len(out) >= maxUserMessages:
			case c.Type == metav1.CauseTypeFieldManagerConflict:
				out = append(out, conflictMessage(c))
			case s.Reason == metav1.StatusReasonInvalid && c.Field != "patch":
				out = append(out, causeMessage(c))
			}
		}
	}
	if len(out) == 0 {
		return messagesOfText(s.Message)
	}
	return out
}

// joinMessages returns an error in words, in one line.
func joinMessages(err error) string {
	return strings.Join(convert.Slice(messagesOf(err), func(m userMessage) string { return m.text }), "; ")
}

// conflictMessage returns the message about a field that another client owns.
func conflictMessage(c metav1.StatusCause) userMessage {
	field := strings.TrimPrefix(c.Field, ".")
	owner := "another client"
	if _, rest, found := strings.Cut(c.Message, "conflict with "); found {
		if quoted, err := strconv.QuotedPrefix(rest); err == nil {
			owner = strings.Trim(quoted, `"`)
		}
	}
	return userMessage{field, fmt.Sprintf("%s: %s has set another value. Remove the field here, or edit the object itself", field, owner)}
}

// causeMessage returns the message about a cause for which an object is invalid: the body of upstream's field.Error.
func causeMessage(c metav1.StatusCause) userMessage {
	kind, rest, _ := strings.Cut(c.Message, ": ")
	value, detail := "", rest
	switch kind {
	case "Invalid value", "Unsupported value", "Duplicate value", "Not found":
		value, detail = cutValue(rest)
	}
	detail, _, _ = strings.Cut(detail, "\n") // after it upstream compares whole objects
	detail = strings.TrimPrefix(detail, c.Field+" in body ")
	var text string
	switch kind {
	case "Required value":
		text = "is required"
		if detail != "" {
			text += ": " + detail
		}
		return userMessage{c.Field, strings.TrimSpace(c.Field + " " + text)}
	case "Unsupported value":
		text = fmt.Sprintf("%s is not one of %s", value, strings.TrimPrefix(detail, "supported values: "))
	case "Duplicate value":
		text = value + " is there twice"
	case "Not found":
		text = value + " is not there"
	case "Too long":
		text = "is too long: " + detail
	case "Invalid value":
		switch {
		case strings.Contains(detail, "field is immutable"):
			text = "cannot be changed: delete the object and create it again"
		case len(value) <= 40 && value != "" && !strings.Contains(detail, value):
			text = fmt.Sprintf("%s (it is %s)", detail, value)
		default:
			text = detail
		}
	case "Forbidden":
		text = detail
	default:
		text = c.Message
	}
	if c.Field == "" || c.Field == "<nil>" {
		return userMessage{"", text}
	}
	return userMessage{c.Field, c.Field + ": " + text}
}

// cutValue cuts what upstream writes as VALUE: DETAIL. A value is a number, a quoted text or JSON.
func cutValue(text string) (value, detail string) {
	if quoted, err := strconv.QuotedPrefix(text); err == nil {
		return quoted, strings.TrimPrefix(text[len(quoted):], ": ")
	}
	d := json.NewDecoder(strings.NewReader(text))
	var v json.RawMessage
	if err := d.Decode(&v); err == nil {
		return string(v), strings.TrimPrefix(text[d.InputOffset():], ": ")
	}
	value, detail, found := strings.Cut(text, ": ")
	if !found {
		return "", text
	}
	return value, detail
}

var (
	strictError   = regexp.MustCompile(`(unknown|duplicate) field "((?:[^"\\]|\\.)*)"`)
	wrongType     = regexp.MustCompile(`cannot unmarshal (\w+)(?: \S+)? into Go (?:struct field (\S+)|value) of type (\S+)`)
	typedError    = regexp.MustCompile(`failed to create typed patch object \([^)]*\): (?:errors:)?`)
	typedElement  = regexp.MustCompile(`^(\S+): element (\d+): (?:associative list with keys has an element that omits all key fields (\[[^\]]*\]))?`)
	quotaExceeded = regexp.MustCompile(`is forbidden: exceeded quota: (\S+), requested: (\S+), used: (\S+), limited: (\S+)$`)
	quotaMissing  = regexp.MustCompile(`is forbidden: failed quota: (\S+): must specify (.*)$`)
	mayNot        = regexp.MustCompile(`is forbidden: User "((?:[^"\\]|\\.)*)" cannot (\S+) resource "([^"]+)" in API group "([^"]*)" (?:in the namespace "([^"]+)"|at the cluster scope)(.*)$`)
	webhookSays   = regexp.MustCompile(`(?s)admission webhook "([^"]+)" denied the request(?:: (.*)| without explanation)$`)
	webhookFails  = regexp.MustCompile(`(?s)failed calling webhook "([^"]+)": (?:failed to call webhook: )?(.*)$`)
	policySays    = regexp.MustCompile(`(?s)ValidatingAdmissionPolicy '([^']+)'.*? denied request: (.*)$`)
	podSecurity   = regexp.MustCompile(`violates PodSecurity "([^":]+)[^"]*": (.*)$`)
	terminating   = regexp.MustCompile(`unable to create new content in namespace (\S+) because it is being terminated`)
	noNamespace   = regexp.MustCompile(`^namespaces "([^"]+)" not found$`)
	noAccount     = regexp.MustCompile(`error looking up service account (\S+): serviceaccount "[^"]+" not found`)
)

// messagesOfText returns the messages for an error without causes. A text in no known form stays unchanged.
func messagesOfText(message string) []userMessage {
	if strings.Contains(message, "strict decoding error: ") {
		if out := strictMessages(message); out != nil {
			return out
		}
	}
	if at := typedError.FindStringIndex(message); at != nil {
		return typedMessages(message[at[1]:])
	}
	if m := wrongType.FindStringSubmatch(message); m != nil {
		_, field, _ := strings.Cut(m[2], ".")
		text := fmt.Sprintf("%s is wanted, and there is %s", typeWords(m[3]), typeWords(m[1]))
		if field != "" {
			text = field + ": " + text
		}
		return []userMessage{{field, text}}
	}
	text := message
	if m := quotaExceeded.FindStringSubmatch(message); m != nil {
		text = quotaMessage(m[1], m[2], m[3], m[4])
	} else if m := quotaMissing.FindStringSubmatch(message); m != nil {
		text = fmt.Sprintf("the quota %s is only for pods that say %s", m[1], m[2])
	} else if m := mayNot.FindStringSubmatch(message); m != nil {
		resource := m[3]
		if m[4] != "" {
			resource += "." + m[4]
		}
		text = fmt.Sprintf("you may not %s %s", m[2], resource)
		if m[5] != "" {
			text += " in namespace " + m[5]
		}
		text += m[6]
	} else if m := webhookSays.FindStringSubmatch(message); m != nil {
		text = fmt.Sprintf("the admission webhook %s refuses it", m[1])
		if m[2] != "" {
			text += ": " + m[2]
		}
	} else if m := webhookFails.FindStringSubmatch(message); m != nil {
		text = fmt.Sprintf("the admission webhook %s has to be asked, and does not answer: %s", m[1], m[2])
	} else if m := policySays.FindStringSubmatch(message); m != nil {
		text = fmt.Sprintf("the admission policy %s refuses it: %s", m[1], m[2])
	} else if m := podSecurity.FindStringSubmatch(message); m != nil {
		text = fmt.Sprintf("the namespace takes only pods of the security level %q: %s", m[1], m[2])
	} else if m := terminating.FindStringSubmatch(message); m != nil {
		text = fmt.Sprintf("the namespace %s is being deleted", m[1])
	} else if m := noNamespace.FindStringSubmatch(message); m != nil {
		text = fmt.Sprintf("there is no namespace %s", m[1])
	} else if m := noAccount.FindStringSubmatch(message); m != nil {
		text = fmt.Sprintf("there is no service account %s", m[1])
	}
	return []userMessage{{"", text}}
}

// strictMessages returns the messages about fields that a kind does not have, and fields that are given twice.
func strictMessages(message string) []userMessage {
	var out []userMessage
	for _, m := range strictError.FindAllStringSubmatch(message, maxUserMessages) {
		field := m[2]
		if unquoted, err := strconv.Unquote(`"` + field + `"`); err == nil {
			field = unquoted
		}
		if m[1] == "unknown" {
			out = append(out, userMessage{field, "unknown field " + field})
		} else {
			out = append(out, userMessage{field, field + " is there twice"})
		}
	}
	return out
}

// expectedTypes has the words for the types that server-side apply expects.
var expectedTypes = map[string]string{
	"string": "text is wanted: put it in quotes", "numeric (int or float)": "a number is wanted, without quotes",
	"boolean": "true or false is wanted, without quotes", "map": "fields are wanted (name: value)",
	"list": "a list is wanted (lines that begin with a hyphen)", "any scalar": "one value is wanted",
}

// typedMessages returns the messages for errors of server-side apply. errs has one error on each line.
func typedMessages(errs string) []userMessage {
	var out []userMessage
	for row := range strings.Lines(errs) {
		row = strings.TrimPrefix(strings.TrimSpace(row), ".")
		if row == "" || len(out) >= maxUserMessages {
			continue
		}
		if m := typedElement.FindStringSubmatch(row); m != nil {
			field := m[1] + "[" + m[2] + "]"
			text := strings.TrimPrefix(row, m[0])
			if m[3] != "" {
				text = "one of the fields " + m[3] + " is required"
			}
			out = append(out, userMessage{field, field + ": " + text})
			continue
		}
		field, text, found := strings.Cut(row, ": ")
		if !found {
			out = append(out, userMessage{"", row})
			continue
		}
		if text == "field not declared in schema" {
			out = append(out, userMessage{field, "unknown field " + field})
			continue
		}
		if expected, _, found := strings.Cut(strings.TrimPrefix(text, "expected "), ", got "); found && expectedTypes[expected] != "" {
			text = expectedTypes[expected]
		}
		out = append(out, userMessage{field, field + ": " + text})
	}
	return out
}

// typeWords returns the words for a type of Go or JSON in an error of Go's decoder.
func typeWords(t string) string {
	switch {
	case t == "string":
		return "text"
	case t == "bool":
		return "true or false"
	case strings.HasPrefix(t, "int"), strings.HasPrefix(t, "uint"):
		return "a whole number"
	case t == "number", strings.HasPrefix(t, "float"):
		return "a number"
	case t == "array", strings.HasPrefix(t, "["):
		return "a list"
	default:
		return "a map of fields"
	}
}

// quotaMessage compares the requested resources with those that a quota leaves. Each argument but the name is a list of
// RESOURCE=QUANTITY.
func quotaMessage(name, requested, used, limited string) string {
	of := func(list string) map[string]string {
		out := map[string]string{}
		for pair := range strings.SplitSeq(list, ",") {
			k, v, _ := strings.Cut(pair, "=")
			out[k] = v
		}
		return out
	}
	asked, taken, most := of(requested), of(used), of(limited)
	var parts []string
	for pair := range strings.SplitSeq(limited, ",") { // in the API's order
		k, _, _ := strings.Cut(pair, "=")
		parts = append(parts, fmt.Sprintf("%s: %s of %s are used, and this needs %s more", k, taken[k], most[k], asked[k]))
	}
	return fmt.Sprintf("the quota %s is exceeded. %s", name, strings.Join(parts, "; "))
}

// decodeStrictly decodes an object of one of Kubernetes' own kinds, as this program knows them, without the API. It
// returns nil for other kinds.
func decodeStrictly(o anyObject) error {
	text, err := json.Marshal(o)
	if err != nil {
		return fmt.Errorf("writing the object: %w", err)
	}
	strict := serializer.SerializerOptions{Strict: true}
	s := serializer.NewSerializerWithOptions(serializer.DefaultMetaFactory, scheme.Scheme, scheme.Scheme, strict)
	kind := kindOf(o)
	if !scheme.Scheme.Recognizes(kind) {
		return nil
	}
	_, _, err = s.Decode(text, &kind, nil)
	return err //nolint:wrapcheck // messagesOf parses it
}
