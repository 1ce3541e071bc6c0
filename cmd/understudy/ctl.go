package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/url"

	"understudy/cmd/box"
	"understudy/console/api"
)

// ctl are the flags of the commands that talk to a running Understudy.
type ctl struct {
	socket, config *string
	asJSON         *bool
}

func ctlFlags(fs *flag.FlagSet) ctl {
	return ctl{fs.String("socket", "", "control socket; empty: the settings file tells"), configFlag(fs),
		fs.Bool("json", false, "print JSON")}
}

func (c ctl) client() (api.Client, error) {
	if *c.socket != "" {
		return api.Client{Socket: *c.socket}, nil
	}
	cfg, err := readConfig(*c.config)
	if err != nil {
		return api.Client{}, err
	}
	return api.Client{Socket: box.ControlPath(cfg)}, nil
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// read runs a reading command: one call, printed as JSON or as text.
func read[T any](e env, name, path string, text func(io.Writer, T)) error {
	fs := e.flags(name, "")
	c := ctlFlags(fs)
	query := url.Values{}
	switch name {
	case "tasks":
		fs.Func("job", "only this job (sweep, ordered, last-sweep, copy-back/ACCOUNT)",
			func(v string) error { query.Set("job", v); return nil })
	case "fingerprint":
		fs.Func("account", "whose", func(v string) error { query.Set("account", v); return nil })
	}
	if err := e.parse(fs, 0); err != nil {
		return err
	}
	cl, err := c.client()
	if err != nil {
		return err
	}
	if len(query) > 0 {
		path += "?" + query.Encode()
	}
	var v T
	if err := cl.Get(e.ctx, path, &v); err != nil {
		return err
	}
	if *c.asJSON {
		return printJSON(e.out, v)
	}
	text(e.out, v)
	return nil
}

// order runs a changing command.
func order(e env, name, args string, n int, dry bool) error {
	fs := e.flags(name, args)
	c := ctlFlags(fs)
	o := api.Order{}
	fs.BoolVar(&o.Wait, "wait", true, "return when it is done")
	if dry {
		fs.BoolVar(&o.DryRun, "dry-run", false, "say what would be done, and do nothing")
	}
	if err := e.parse(fs, n); err != nil {
		return err
	}
	o.Accounts = fs.Args()
	if len(o.Accounts) == 0 {
		o.Accounts = nil
	}
	return c.tell(e, name, o)
}

// tell gives an order and prints the answer.
func (c ctl) tell(e env, name string, o api.Order) error {
	cl, err := c.client()
	if err != nil {
		return err
	}
	a, err := cl.Do(e.ctx, name, o)
	if err != nil {
		return err
	}
	if *c.asJSON {
		return printJSON(e.out, a)
	}
	fmt.Fprintln(e.out, a.Text)
	return nil
}
