package config

import (
	"time"

	"github.com/gridfan/gridfan/infra/credentials"
	"github.com/gridfan/gridfan/infra/keyvault"
)

// How often vaults are asked whether secrets have changed: a request for each secret.
// A vault takes 4000 of them in ten seconds (learn.microsoft.com/azure/key-vault/
// general/service-limits; 2026-11).
const (
	defaultRefresh = 5 * time.Minute
	minRefresh     = 10 * time.Second
	maxRefresh     = 24 * time.Hour
)

// secretStores reads how vaults are reached, before any of their secrets is wanted.
func (d *decoder) secretStores(v, root *value) Secrets {
	s := Secrets{Refresh: defaultRefresh}
	k := v.get("keyvault")
	if k == nil || k.kind != mapping {
		return s
	}
	suffix := k.get("suffix")
	var err error
	if s.KeyVault.Suffix, err = keyvault.ParseSuffix(d.text(suffix)); err != nil {
		d.problem(suffix.at, suffix.path, "%s", err)
	}
	if refresh := k.get("refresh"); refresh != nil {
		if r := d.duration(refresh).Std(); r != 0 {
			if s.Refresh = r; r < minRefresh || r > maxRefresh {
				d.problem(refresh.at, refresh.path, "want 10s to 1d")
			}
		}
	}
	if auth := k.get("auth"); auth != nil {
		s.KeyVault.Auth = d.azureAuth(auth)
		d.validated(s.KeyVault.Auth.Validate("secrets.keyvault.auth", credentials.AzureIdentities...), root, "")
	}
	return s
}
