package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/opencontainers/go-digest"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/content/oci"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/credentials"
	"oras.land/oras-go/v2/registry/remote/retry"
)

// push copies the image of a layout, for all its platforms, to ref: a registry's
// name, an image's and a tag. What the registry has already is not sent again. Who
// we are there is what `docker login` or a credential helper has stored.
func push(ctx context.Context, layout, ref string) (digest.Digest, error) {
	local, err := oci.NewFromFS(ctx, os.DirFS(layout))
	if err != nil {
		return "", fmt.Errorf("the layout %s: %w", layout, err)
	}
	var from string // the image's tag in the layout, which has one
	if err := local.Tags(ctx, "", func(tags []string) error {
		for _, t := range tags {
			from = t
		}
		return nil
	}); err != nil {
		return "", err
	}
	if from == "" {
		return "", fmt.Errorf("%s has no image; run make image first", layout)
	}
	repo, err := remote.NewRepository(ref)
	if err != nil {
		return "", err
	}
	to := repo.Reference.Reference
	if to == "" || repo.Reference.ValidateReferenceAsTag() != nil {
		return "", errors.New("name a tag at the end, as in ghcr.io/gridfan/gridfan:v1.2.3")
	}
	known, err := credentials.NewStoreFromDocker(credentials.StoreOptions{})
	if err != nil {
		return "", fmt.Errorf("what docker login has stored: %w", err)
	}
	repo.Client = &auth.Client{Client: retry.DefaultClient, Cache: auth.NewCache(), Credential: credentials.Credential(known)}
	repo.PlainHTTP = onThisMachine(repo.Reference.Host())
	d, err := oras.Copy(ctx, local, from, repo, to, oras.DefaultCopyOptions)
	return d.Digest, err
}

// onThisMachine says whether a registry is asked by plain HTTP, as Docker asks those
// on a loopback address.
func onThisMachine(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
