package main

import (
	"errors"
	"fmt"
	"strings"

	"understudy/cmd/box"
	"understudy/console/api"
	"understudy/proxy/inline"
)

func networkCmd(e env) error {
	fs := e.flags("network", "plan|apply|remove|bypass on|bypass off|gather")
	c := ctlFlags(fs)
	dry := fs.Bool("dry-run", false, "only show what would be done (apply, remove)")
	usage := fs.Usage
	fs.Usage = func() {
		usage()
		fmt.Fprint(e.out, networkHelp)
	}
	words, err := e.verbs(fs)
	if err != nil {
		return err
	}
	what := strings.Join(words, " ")
	switch what {
	case "bypass on", "bypass off":
		return c.tell(e, "bypass", api.Order{Off: what == "bypass off"})
	case "gather":
		return c.tell(e, what, api.Order{})
	case "plan", "apply", "remove":
	default:
		return fmt.Errorf("%w: %q is neither plan, apply, remove, bypass on, bypass off nor gather", errUsage, what)
	}
	cfg, err := readConfig(*c.config)
	if err != nil {
		return err
	}
	if cfg.Network.Mode == "proxy" {
		return errors.New("network.mode is proxy: nothing is changed in the network")
	}
	s, err := box.WireSite(cfg)
	if err != nil {
		return err
	}
	steps, owned, err := inline.PlanFor(s, box.WireMemory(cfg), what == "remove")
	if err != nil {
		return err
	}
	if *c.asJSON {
		if err := printJSON(e.out, struct {
			Steps []string `json:"steps"`
			Owned string   `json:"owned_tables"`
		}{lines(steps), owned}); err != nil {
			return err
		}
	} else {
		printSteps(e, steps)
		if what == "plan" {
			fmt.Fprintf(e.out, "\nwhile `understudy serve` runs, and gone with it:\n%s\n", owned)
		}
	}
	if what == "plan" || *dry {
		return nil
	}
	if cl, err := c.client(); what == "remove" && err == nil && cl.Get(e.ctx, "/v1/status", &api.Status{}) == nil {
		return errors.New("`understudy serve` is running and would put it back: stop it first")
	}
	return inline.Run(steps)
}

const networkHelp = `
plan        what apply would change, and the tables of the running process
apply       make the bridge, with the fence as it was: traffic passes (at boot, before serve)
remove      take all of it away: the two interfaces stand alone
bypass on   have new connections go straight to production; open ones stay
bypass off  have them come to the box again
gather      reset connections that run past the box (they began before it, or while
            it was down), so that their clients come back through it
`

func lines(steps []inline.Step) []string {
	out := make([]string, 0, len(steps))
	for _, s := range steps {
		out = append(out, s.String())
	}
	return out
}

func printSteps(e env, steps []inline.Step) {
	for _, l := range lines(steps) {
		fmt.Fprintln(e.out, l)
	}
	if len(steps) == 0 {
		fmt.Fprintln(e.out, "nothing to do: the network is as it has to be")
	}
}
