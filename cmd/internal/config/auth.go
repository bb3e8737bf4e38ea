package config

import (
	"fmt"
	"time"

	"github.com/gridfan/gridfan/infra/secret"
	"github.com/gridfan/gridfan/router/auth"
)

// auth reads who may send to a source.
func (d *decoder) auth(v *value) auth.Config {
	var c auth.Config
	switch {
	case v == nil:
	case v.kind == mapping:
		if anyOf := v.get("anyOf"); anyOf != nil {
			for _, way := range anyOf.items {
				// Even an unreadable one takes its place: Validate counts them.
				c.AnyOf = append(c.AnyOf, d.method(way))
			}
		}
		// Neither form of none works by reference: that everybody may send should
		// be seen in the file.
		if none := v.get("none"); none != nil {
			c.None = none.kind == boolean && none.text == "true"
			if !c.None {
				d.problem(none.at, none.path, "want true; leave the key out if not everybody may send")
			}
		}
		c.Allow = d.networks(v.get("allow"))
	case v.kind == text && v.text == "none":
		c.None = true
	default:
		d.problem(v.at, v.path, `want none, or anyOf: [ { key: "${env:NAME}" } ]`)
	}
	return c
}

func (d *decoder) method(v *value) auth.Method {
	m := auth.Method{Key: d.secret(v.get("key"))}
	if v := v.get("sas"); v != nil {
		m.SAS = &auth.SAS{
			Keys:     d.secrets(v.get("keys")),
			Resource: d.text(v.get("resource")),
		}
	}
	if v := v.get("entra"); v != nil {
		m.Entra = &auth.Entra{
			Tenant:    d.text(v.get("tenant")),
			Audiences: d.textOrTexts(v.get("audience")),
			Roles:     d.textOrTexts(v.get("roles")),
			Callers:   d.textOrTexts(v.get("callers")),
			Authority: d.text(v.get("authority")),
		}
	}
	if v := v.get("hmac"); v != nil {
		m.HMAC = &auth.HMAC{
			Preset:    d.text(v.get("preset")),
			Secrets:   d.secrets(v.get("secrets")),
			Tolerance: time.Duration(d.duration(v.get("tolerance"))),
			Header:    d.text(v.get("header")),
			Algorithm: d.text(v.get("algorithm")),
			Encoding:  d.text(v.get("encoding")),
			Prefix:    d.text(v.get("prefix")),
		}
	}
	if v := v.get("mtls"); v != nil {
		m.MTLS = &auth.MTLS{
			CN:     d.textOrTexts(v.get("cn")),
			DNS:    d.textOrTexts(v.get("dns")),
			URI:    d.textOrTexts(v.get("uri")),
			SHA256: d.textOrTexts(v.get("sha256")),
		}
	}
	return m
}

// secrets reads one secret, or a list of them.
func (d *decoder) secrets(v *value) []secret.String {
	if v != nil && v.kind == text {
		return []secret.String{d.secret(v)}
	}
	var all []secret.String
	for _, item := range d.items(v) {
		all = append(all, d.secret(item)) // in its place even if unreadable
	}
	return all
}

// verifiable reports client certificates that source asks for and the listener
// does not: nobody could send.
func (d *decoder) verifiable(c auth.Config, source *value, listener *TLS) {
	if listener != nil && listener.ClientCA != "" || d.troubled("listen.public.tls") {
		return
	}
	for i, m := range c.AnyOf {
		if m.MTLS != nil {
			at, path, _ := source.locate(fmt.Sprintf(".push.auth.anyOf[%d].mtls", i))
			d.problem(at, path, "no client certificate is ever asked for; set listen.public.tls.clientCA to the file of the authorities that sign them")
		}
	}
}
