package keyvault

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"
)

// DefaultSuffix is what follows a vault's name in the public cloud
// (learn.microsoft.com/azure/key-vault/general/about-keys-secrets-certificates
// #vault-name-and-object-name; 2026-11).
const DefaultSuffix = "vault.azure.net"

// Reference names one secret, and one version of it or the newest.
type Reference struct {
	// Vault is its name, or its host when it has a dot.
	Vault, Name string
	Version     string // empty: the newest
}

// Names as the service has them (the page above).
var (
	vaultName   = regexp.MustCompile(`^[a-zA-Z](-?[a-zA-Z0-9]){2,23}$`)
	hostName    = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9.-]*[a-zA-Z0-9])?\.[a-zA-Z0-9]+(:[0-9]{1,5})?$`)
	secretName  = regexp.MustCompile(`^[a-zA-Z0-9-]{1,127}$`)
	versionName = regexp.MustCompile(`^[a-zA-Z0-9]{1,64}$`)
)

// ParseReference reads vault/name or vault/name/version. The vault is its name, its
// host or its https:// URL; what the portal calls a secret identifier is fine too.
func ParseReference(s string) (Reference, error) {
	vault, rest, _ := strings.Cut(s, "/")
	if after, ok := strings.CutPrefix(s, "https://"); ok {
		vault, rest, _ = strings.Cut(after, "/")
		rest = strings.TrimPrefix(rest, "secrets/")
		if !hostName.MatchString(vault) {
			return Reference{}, errors.New("want the vault's host after https://, as in https://contoso.vault.azure.net/name")
		}
	}
	name, version, versioned := strings.Cut(rest, "/")
	switch {
	case !vaultName.MatchString(vault) && !hostName.MatchString(vault):
		return Reference{}, errors.New("want vault/name, where vault is its name (3 to 24 letters, digits and dashes), its host or its https:// URL")
	case !secretName.MatchString(name):
		return Reference{}, errors.New("want vault/name, where name is the secret's: letters, digits and dashes")
	case versioned && !versionName.MatchString(version):
		return Reference{}, errors.New("want vault/name/version, where version is letters and digits; leave it out for the newest")
	}
	return Reference{Vault: vault, Name: name, Version: version}, nil
}

// host is where the secret's vault is.
func (r Reference) host(suffix string) string {
	if strings.Contains(r.Vault, ".") {
		return strings.ToLower(r.Vault)
	}
	return strings.ToLower(r.Vault) + "." + suffix
}

// ParseSuffix reads what follows the names of vaults in one cloud: vault.azure.cn, or
// the URL of one vault of it.
func ParseSuffix(s string) (string, error) {
	if s == "" {
		return DefaultSuffix, nil
	}
	suffix := strings.Trim(s, ".")
	if u, err := url.Parse(s); err == nil && u.Scheme == "https" {
		// That of a vault of the cloud: the vault's own name is not part of it.
		_, suffix, _ = strings.Cut(u.Host, ".")
	}
	if !hostName.MatchString(suffix) {
		return "", fmt.Errorf("want what follows the vault's name in this cloud, as in %s, or the https:// URL of a vault", DefaultSuffix)
	}
	return strings.ToLower(suffix), nil
}
