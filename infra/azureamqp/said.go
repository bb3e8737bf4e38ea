package azureamqp

import (
	"errors"
	"regexp"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azeventhubs/v2"
	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"
	"github.com/Azure/go-amqp"
)

// signature is what a token of a connection string is told by.
var signature = regexp.MustCompile(`(?i)\b(sig|SharedAccessKey|SharedAccessSignature)=[^&;\s]+`)

// Unsigned is text without signatures: clients and services quote what they refuse.
func Unsigned(text string) string { return signature.ReplaceAllString(text, "$1=<redacted>") }

// quoted is a condition in the text of an error that does not give it otherwise
// (azservicebus v1.11.0 and azeventhubs v2.0.2 wrap without Unwrap; go-amqp v1.7.0
// writes this).
var quoted = regexp.MustCompile(`(?s)\*Error\{Condition: ([^,]+), Description: (.*), Info: `)

// Said gives the condition and description by which the service refused something, if
// err has them.
func Said(err error) (condition amqp.ErrCond, description string, ok bool) {
	if e, ok := errors.AsType[*amqp.Error](err); ok {
		return e.Condition, e.Description, true
	}
	if m := quoted.FindStringSubmatch(err.Error()); m != nil {
		return amqp.ErrCond(m[1]), m[2], true
	}
	return "", "", false
}

// ClaimStatus is the status, as in HTTP, by which the service refused a token.
func ClaimStatus(err error) (int, bool) {
	if e, ok := errors.AsType[*azservicebus.Error](err); ok {
		status := map[azservicebus.Code]int{azservicebus.CodeUnauthorizedAccess: 401, azservicebus.CodeNotFound: 404}[e.Code]
		if _, _, ok := Said(err); !ok && status != 0 {
			return status, true
		}
	}
	if e, ok := errors.AsType[*azeventhubs.Error](err); ok && e.Code == azeventhubs.ErrorCodeUnauthorizedAccess {
		if _, _, ok := Said(err); !ok {
			return 401, true
		}
	}
	var answer interface {
		error
		RPCCode() int
	}
	if errors.As(err, &answer) {
		return answer.RPCCode(), true
	}
	return 0, false
}
