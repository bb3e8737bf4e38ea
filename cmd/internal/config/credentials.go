package config

import "github.com/gridfan/gridfan/infra/credentials"

// credential reads how a subscriber knows gridfan.
func (d *decoder) credential(v *value) *credentials.Auth {
	if v == nil || v.kind != mapping {
		return nil // reported
	}
	hidden := func(v *value) credentials.Secret { return credentials.Secret(d.secret(v).Reveal()) }
	a := &credentials.Auth{}
	if o := v.get("oauth2"); o != nil {
		a.OAuth2 = &credentials.OAuth2{
			TokenURL:     d.text(o.get("tokenURL")),
			ClientID:     d.text(o.get("clientID")),
			ClientSecret: hidden(o.get("clientSecret")),
			SecretIn:     credentials.SecretIn(d.choice(o.get("secretIn"))),
			Cert:         d.text(o.get("cert")),
			Key:          d.text(o.get("key")),
			Algorithm:    d.choice(o.get("algorithm")),
			Assertion:    hidden(o.get("assertion")),
			Scope:        d.text(o.get("scope")),
			Audience:     d.text(o.get("audience")),
			CA:           d.text(o.get("ca")),
		}
		if params := o.get("params"); params != nil && params.kind == mapping {
			a.OAuth2.Params = map[string]credentials.Secret{}
			for _, f := range params.fields {
				// They are hidden like secrets, and most are none: no warning.
				a.OAuth2.Params[f.name] = credentials.Secret(d.text(params.get(f.name)))
			}
		}
	}
	if m := v.get("managedIdentity"); m != nil {
		a.ManagedIdentity = &credentials.ManagedIdentity{ClientID: d.text(m.get("clientID")), Scope: d.text(m.get("scope"))}
	}
	if w := v.get("workloadIdentity"); w != nil {
		a.WorkloadIdentity = &credentials.WorkloadIdentity{
			ClientID: d.text(w.get("clientID")), Tenant: d.text(w.get("tenant")), Scope: d.text(w.get("scope")),
		}
	}
	if k := v.get("apiKey"); k != nil {
		a.APIKey = &credentials.APIKey{Header: d.text(k.get("header")), Query: d.text(k.get("query")), Value: hidden(k.get("value"))}
	}
	if b := v.get("basic"); b != nil {
		a.Basic = &credentials.Basic{Username: d.text(b.get("username")), Password: hidden(b.get("password"))}
	}
	if b := v.get("bearer"); b != nil {
		a.Bearer = &credentials.Bearer{Token: hidden(b.get("token"))}
	}
	return a
}

// clientTLS reads how a subscriber's certificate is verified and what it is shown.
func (d *decoder) clientTLS(v *value) *credentials.TLS {
	if v == nil || v.kind != mapping {
		return nil // reported
	}
	return &credentials.TLS{
		Cert: d.text(v.get("cert")), Key: d.text(v.get("key")), CA: d.text(v.get("ca")), ServerName: d.text(v.get("serverName")),
	}
}
