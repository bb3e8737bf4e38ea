package azure

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
)

// patient asks for one token at a time, and lets whoever waits for it go when its
// context ends: azidentity's waiters hold out until the first has an answer
// (sdk/internal/temporal v1.13.0; 2026-11), and an attempt has a deadline.
type patient struct {
	inner azcore.TokenCredential

	mu    sync.Mutex // guards asked
	asked map[string]*asking
}

// asking is a request for a token that is under way.
type asking struct {
	done  chan struct{}
	token azcore.AccessToken
	err   error
}

// askFor bounds a request for a token. It is not the deadline of whoever asked
// first, because others wait for the same.
const askFor = 30 * time.Second

func newPatient(c azcore.TokenCredential) *patient {
	return &patient{inner: c, asked: map[string]*asking{}}
}

// GetToken implements azcore.TokenCredential.
func (p *patient) GetToken(ctx context.Context, opts policy.TokenRequestOptions) (azcore.AccessToken, error) {
	key := strings.Join(append([]string{opts.TenantID, opts.Claims}, opts.Scopes...), " ")
	p.mu.Lock()
	a := p.asked[key]
	if a == nil {
		a = &asking{done: make(chan struct{})}
		p.asked[key] = a
		go func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askFor)
			defer cancel()
			a.token, a.err = p.inner.GetToken(ctx, opts)
			p.mu.Lock()
			delete(p.asked, key)
			p.mu.Unlock()
			close(a.done)
		}()
	}
	p.mu.Unlock()
	select {
	case <-a.done:
		return a.token, a.err
	case <-ctx.Done():
		return azcore.AccessToken{}, ctx.Err()
	}
}
