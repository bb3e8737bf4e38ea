// Command image makes gridfan's container image without a container engine, and
// pushes it to a registry.
//
// The image is one static binary and two empty folders, so that all there is to do
// is to compile, to write a tar archive and to describe it as the OCI image
// specification says (v1.1.1, github.com/opencontainers/image-spec). For the same
// commit and the same version of Go its digest is the same, wherever and whenever it
// is made: times in it are the commit's, and nothing of the machine gets in.
//
//	go run ./cmd/internal/image build -out bin/gridfan-image -version v1.2.3
//	go run ./cmd/internal/image push -from bin/gridfan-image ghcr.io/gridfan/gridfan:v1.2.3
//
// infra/image/Dockerfile makes the same image for those who have an engine.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

// run does what the command line asks for.
func run(ctx context.Context, args []string, out io.Writer) error {
	usage := errors.New("want build or push; see the package comment")
	if len(args) == 0 {
		return usage
	}
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	switch args[0] {
	case "build":
		o := options{}
		var created int64
		var platforms string
		flags.StringVar(&o.out, "out", "bin/gridfan-image", "the folder for the OCI layout; beside it, with .tar at the end, goes what docker load takes")
		flags.StringVar(&o.version, "version", "dev", "what gridfan --version says, and the tag")
		flags.StringVar(&o.revision, "revision", "", "the commit it is built from")
		flags.Int64Var(&created, "created", 0, "the time it says it was made, in seconds since 1970: the commit's")
		flags.StringVar(&platforms, "platforms", "linux/amd64,linux/arm64", "what to build for; the first has the plain tag in docker load")
		if err := flags.Parse(args[1:]); err != nil {
			return err
		}
		o.created = time.Unix(created, 0).UTC()
		var err error
		if o.platforms, err = parsePlatforms(platforms); err != nil {
			return err
		}
		made, err := build(ctx, o, compile)
		if err != nil {
			return err
		}
		return made.print(out, o.out)
	case "push":
		from := flags.String("from", "bin/gridfan-image", "the OCI layout that build has made")
		if err := flags.Parse(args[1:]); err != nil {
			return err
		}
		if flags.NArg() == 0 {
			return errors.New("push: where to? Name the image as REGISTRY/NAME:TAG")
		}
		for _, ref := range flags.Args() {
			digest, err := push(ctx, *from, ref)
			if err != nil {
				return fmt.Errorf("push %s: %w", ref, err)
			}
			name, _, _ := strings.Cut(ref, "@")
			if _, err := fmt.Fprintf(out, "pushed %s@%s\n", name, digest); err != nil {
				return err
			}
		}
		return nil
	}
	return usage
}
