package app

import (
	"errors"
	"net/http"
	"net/netip"

	"github.com/gridfan/gridfan/infra/secret"
	"github.com/gridfan/gridfan/router/auth"
	"github.com/gridfan/gridfan/subscribers/pull"
)

// door lets receivers in by the same checks as senders.
type door struct{ auth *auth.Authenticator }

func newDoor(cfg pull.Config, deps auth.Deps) (*door, error) {
	var ways auth.Config
	for _, key := range cfg.Keys {
		ways.AnyOf = append(ways.AnyOf, auth.Method{Key: secret.New(key)})
	}
	if e := cfg.Entra; e != nil {
		callers := e.Callers
		if len(callers) == 0 {
			callers = []string{auth.CallerAny}
		}
		ways.AnyOf = append(ways.AnyOf, auth.Method{Entra: &auth.Entra{
			Tenant: e.Tenant, Audiences: e.Audience, Roles: e.Roles, Callers: callers, Authority: e.Authority,
		}})
	}
	a, err := auth.New(ways, deps)
	if err != nil {
		return nil, err
	}
	return &door{a}, nil
}

// Admit answers as pull.Door wants it. No network is asked for, so the address does
// not matter.
func (d *door) Admit(r *http.Request) error {
	err := d.auth.Check(r, netip.Addr{}, nil)
	if denied, ok := errors.AsType[*auth.Denied](err); ok {
		return &pull.Denied{Reason: denied.Reason, Challenges: d.auth.Challenges()}
	}
	if u, ok := errors.AsType[*auth.Unavailable](err); ok {
		return &pull.Unavailable{Reason: u.Reason, RetryAfter: u.RetryAfter}
	}
	return err
}
