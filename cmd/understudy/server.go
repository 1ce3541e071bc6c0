package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"

	"understudy/lab/maild"
	"understudy/proxy"
)

// demoSite is the settings of the demonstration's mail server.
type demoSite struct {
	Dir, IMAP, SMTP string
	Domain          string
	Users           map[string]string // with their passwords
	Master          string
	MasterPassword  string
}

// demoServer runs the mail server of the demonstration. It is a process of its own,
// on disk, so that it can be killed.
func demoServer(e env) error {
	fs := e.flags("server", "")
	path := fs.String("site", "", "file with the site's settings, as the demonstration writes it")
	if err := e.parse(fs, 0); err != nil {
		return err
	}
	b, err := os.ReadFile(*path)
	if err != nil {
		return fmt.Errorf("site file: %w", err)
	}
	var d demoSite
	if err := json.Unmarshal(b, &d); err != nil {
		return fmt.Errorf("site file %s: %w", *path, err)
	}
	server, err := maild.New(e.ctx,
		maild.Options{Dir: filepath.Join(d.Dir, "store"), Domain: d.Domain, Users: d.Users, Master: d.Master,
			MasterPassword: d.MasterPassword,
			Greeting:       "Demonstration server ready.", Log: newLog("warn", e.errOut)})
	if err != nil {
		return err
	}
	defer func() { _ = server.Close() }()
	g, ctx := errgroup.WithContext(e.ctx)
	for addr, kind := range map[string]proxy.Kind{d.IMAP: proxy.IMAP, d.SMTP: proxy.SMTP} {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return err
		}
		g.Go(func() error { return server.Serve(ctx, l, kind) })
	}
	return g.Wait()
}
