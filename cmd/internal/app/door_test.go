package app_test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/messaging/eventgrid/aznamespaces"

	"github.com/gridfan/gridfan/router/auth/authtest"
)

// tokens gives a stock client access tokens.
type tokens func(options policy.TokenRequestOptions) (string, error)

func (f tokens) GetToken(_ context.Context, options policy.TokenRequestOptions) (azcore.AccessToken, error) {
	text, err := f(options)
	return azcore.AccessToken{Token: text, ExpiresOn: time.Now().Add(time.Hour)}, err
}

// TestPullEntra: the stock client with a token of the tenant gets the events of a
// subscriber that takes tokens, and of that one alone; every token that is not quite
// right is refused, and none shows in an answer or the log.
func TestPullEntra(t *testing.T) {
	login := authtest.NewLogin(t)
	stranger, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	const audience, client = "https://eventgrid.azure.net", "11111111-2222-3333-4444-555555555555"
	entra := fmt.Sprintf("deliver: { pull: { entra: { tenant: %s, audience: %q, roles: [ Events.Read ], authority: %q", authtest.Tenant, audience, login.URL)
	log := &diary{}
	g, c := securedLogging(t, slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}), sources, "subscribers:\n",
		"  roles: { subjects: [ \"events.>\" ], "+entra+" } } } }\n",
		"  callers: { subjects: [ \"events.>\" ], "+entra+", callers: [ "+client+" ] } } } }\n",
		fetching("keyed", ""))
	url := "https://" + g.app.PublicAddr()
	resp, err := c.Post(url+"/ingress/fo", "application/json", strings.NewReader(string(businessEvent("ENTRA"))))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	right := map[string]any{"azp": client, "roles": []string{"Events.Read"}}
	for _, tt := range []struct {
		name, subscriber, audience string
		key                        *rsa.PrivateKey
		claims                     map[string]any
		in                         bool
	}{
		{"a role", "roles", audience, login.Key, right, true},
		{"a role and a caller", "callers", audience, login.Key, right, true},
		{"another role", "roles", audience, login.Key, map[string]any{"azp": client, "roles": []string{"Events.Write"}}, false},
		{"no role", "roles", audience, login.Key, map[string]any{"azp": client}, false},
		{"another caller", "callers", audience, login.Key, map[string]any{"azp": authtest.Tenant, "roles": []string{"Events.Read"}}, false},
		{"another audience", "roles", "https://graph.microsoft.com", login.Key, right, false},
		{"another tenant", "roles", audience, login.Key, map[string]any{"azp": client, "roles": []string{"Events.Read"}, "tid": client}, false},
		{"run out", "roles", audience, login.Key, map[string]any{"azp": client, "roles": []string{"Events.Read"}, "exp": time.Now().Add(-time.Hour).Unix()}, false},
		{"signed by a stranger", "roles", audience, stranger, right, false},
		{"where keys are wanted", "keyed", audience, login.Key, right, false},
	} {
		text := login.Token(t, tt.key, tt.audience, tt.claims)
		o := &aznamespaces.ReceiverClientOptions{}
		o.Transport, o.Retry.MaxRetries = c, -1
		r, err := aznamespaces.NewReceiverClient(url, "events", tt.subscriber, tokens(func(options policy.TokenRequestOptions) (string, error) {
			if !slices.Equal(options.Scopes, []string{audience + "/.default"}) {
				t.Errorf("%s: the client asks for %q, docs/pull.md says something else", tt.name, options.Scopes)
			}
			return text, nil
		}), o)
		if err != nil {
			t.Fatal(err)
		}
		if tt.in {
			held := takeAll(t, r, 1)[0]
			if _, err := r.AcknowledgeEvents(t.Context(), []string{held.token}, nil); err != nil || held.id != "ENTRA" {
				t.Errorf("%s: %+v, %v", tt.name, held, err)
			}
			continue
		}
		_, err = r.ReceiveEvents(t.Context(), nil)
		if code, name := status(err); code != http.StatusUnauthorized || name != "unauthorized" {
			t.Errorf("%s: %v", tt.name, err)
		}
		if err != nil && strings.Contains(err.Error(), text) {
			t.Errorf("%s: the answer shows the token", tt.name)
		}
		if strings.Contains(log.String(), text) {
			t.Errorf("%s: the log shows the token", tt.name)
		}
	}
}
