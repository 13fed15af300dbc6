// Command lint checks a Dockerfile by the rules of `docker build --check`, without Docker.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/frontend/dockerfile/dockerfile2llb"
	digest "github.com/opencontainers/go-digest"
)

func main() {
	if err := run(os.Args[1:], os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "lint:", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	if len(args) != 1 {
		return errors.New("pass one Dockerfile")
	}
	text, err := os.ReadFile(args[0])
	if err != nil {
		return err
	}
	ctx := context.Background()
	state := llb.Scratch()
	definition, err := state.Marshal(ctx)
	if err != nil {
		return err
	}
	source := llb.NewSourceMap(&state, args[0], "Dockerfile", text)
	source.Definition = definition
	found, err := dockerfile2llb.DockerfileLint(ctx, text,
		dockerfile2llb.ConvertOpt{MetaResolver: noImages{}, SourceMap: source})
	if err != nil {
		return err
	}
	if found.Error != nil {
		return errors.New(found.Error.Message)
	}
	for i := range found.Warnings {
		if err := found.Warnings[i].PrintTo(out, found.Sources, nil); err != nil {
			return err
		}
	}
	if n := len(found.Warnings); n > 0 {
		return fmt.Errorf("%d warnings", n)
	}
	return nil
}

// noImages resolves every image to an empty configuration, which the rules do not use.
type noImages struct{}

func (noImages) ResolveImageConfig(_ context.Context, ref string, _ sourceresolver.Opt) (string, digest.Digest,
	[]byte, error) {
	return ref, digest.FromString(ref), []byte("{}"), nil
}
