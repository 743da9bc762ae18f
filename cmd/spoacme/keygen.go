package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

	"github.com/spoacme/spoacme/store/seal"
)

func newKeygen() *cobra.Command {
	var dir string
	var missing bool
	c := &cobra.Command{
		Use:   "keygen",
		Short: "Make the keysets that seal private keys in Consul",
		Long: `Make the two keysets that seal private keys before they go to Consul. Copy fleet.json to every sidecar, issuer.json
only to those that may lead. Whoever has fleet.json and may read Consul has every certificate's private key.

To change a key: 'keygen add' on one copy of the file, give it to every node, restart the sidecars; 'keygen promote', give it to
every node, restart; wait until the leader's log says that nothing is sealed with the old key any more; 'keygen drop', and give
that to every node.`,
		Example: "  spoacme keygen --dir /etc/spoacme\n  spoacme keygen add /etc/spoacme/fleet.json",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			for _, name := range []string{"fleet.json", "issuer.json"} {
				text, err := seal.New()
				if err != nil {
					return err
				}
				path := filepath.Join(dir, name)
				err = writeNew(path, text)
				switch {
				case missing && errors.Is(err, fs.ErrExist):
					continue
				case err != nil:
					return err
				}
				fmt.Fprintln(c.OutOrStdout(), path)
			}
			return nil
		},
	}
	c.Flags().StringVar(&dir, "dir", ".", "directory for fleet.json and issuer.json")
	c.Flags().BoolVar(&missing, "missing", false, "make only what is not there: for a script that runs at every start")
	c.AddCommand(
		&cobra.Command{
			Use: "add FILE", Short: "Add a key that opens, but does not seal yet", Args: usageArgs(cobra.ExactArgs(1)),
			RunE: func(c *cobra.Command, args []string) error {
				return rewriteKeys(args[0], func(text []byte) ([]byte, error) {
					out, id, err := seal.Add(text)
					if err == nil {
						fmt.Fprintf(c.OutOrStdout(), "added key %d; when every node has this file: spoacme keygen promote %s %d\n", id, args[0], id)
					}
					return out, err
				})
			},
		},
		keyCommand("promote FILE KEY", "Seal with this key from now on", seal.Promote),
		keyCommand("drop FILE KEY", "Take out a key that nothing is sealed with any more", seal.Drop),
	)
	return c
}

func keyCommand(use, short string, change func([]byte, uint32) ([]byte, error)) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Args: usageArgs(cobra.ExactArgs(2)),
		RunE: func(_ *cobra.Command, args []string) error {
			id, err := strconv.ParseUint(args[1], 10, 32)
			if err != nil {
				return usageError("%q is not the number of a key", args[1])
			}
			return rewriteKeys(args[0], func(text []byte) ([]byte, error) { return change(text, uint32(id)) })
		},
	}
}

// writeNew writes a file that must not exist yet: a keyset that is lost can't be made again.
func writeNew(path string, text []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	switch {
	case errors.Is(err, fs.ErrExist):
		return fmt.Errorf("%s: %w and stays as it is: name another --dir, or say --missing", path, fs.ErrExist)
	case err != nil:
		return fmt.Errorf("make a keyset: %w", err)
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Sync(), f.Close())
}

func rewriteKeys(path string, change func([]byte) ([]byte, error)) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read the keyset: %w", err)
	}
	out, err := change(text)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if err := renameio.WriteFile(path, out, 0o600, renameio.WithStaticPermissions(0o600)); err != nil {
		return fmt.Errorf("write the keyset: %w", err)
	}
	return nil
}
