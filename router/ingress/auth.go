package ingress

import (
	"net/http"
	"strings"
)

// authorised says whether the request shows one of the source's keys.
//
// Senders can put a key where they can: Event Grid into the URL's query or a
// delivery property header, F&O and Dataverse into the URL, the Azure SDKs into
// aeg-sas-key or Authorization.
func (s *source) authorised(r *http.Request) bool {
	if s.NoAuth {
		return true
	}
	query := r.URL.Query()
	sent := []string{
		r.Header.Get("aeg-sas-key"),
		r.Header.Get("X-Gridfan-Key"),
		query.Get("code"),
		query.Get("key"),
	}
	if scheme, key, ok := strings.Cut(r.Header.Get("Authorization"), " "); ok && strings.EqualFold(scheme, "SharedAccessKey") {
		sent = append(sent, strings.TrimSpace(key))
	}
	ok := false
	for _, candidate := range sent {
		for _, key := range s.Keys {
			// No early way out: the time must not tell which key came close.
			if candidate != "" && key.Equal(candidate) {
				ok = true
			}
		}
	}
	return ok
}
