// Package route knows where mail for a recipient lands: by what was learned from
// deliveries that were seen, or in the account of that very name.
//
// Implementation notes. A route is learned in the batch of the mailbox that proves it,
// and shown when that is durable (Show). The map has a mutex that is held for
// nothing else.
package route

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"

	"understudy/replica/meta"
	"understudy/replica/row"
)

// Accounts tells accounts by name.
type Accounts interface {
	Resolve(user string) (name string, ok bool)
}

// Routes is what was learned.
type Routes struct {
	accounts Accounts
	domains  []string

	mu sync.Mutex
	m  map[string]row.Route
}

// New returns routes; domains, in lower case, are those whose local parts are account
// names. Load reads what was learned.
func New(a Accounts, domains []string) *Routes {
	return &Routes{accounts: a, domains: domains, m: map[string]row.Route{}}
}

// Load reads all routes, in place of those in memory.
func (r *Routes) Load(sn meta.Snap) error {
	m := map[string]row.Route{}
	for _, v := range sn.Scan(meta.Range(meta.Routes())) {
		var x row.Route
		if err := json.Unmarshal(v, &x); err != nil {
			return fmt.Errorf("route row: %w", err)
		}
		m[x.Recipient] = x
	}
	if err := sn.Err(); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.m = m
	return nil
}

func (r *Routes) learned(key string) (row.Route, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	x, ok := r.m[key]
	return x, ok
}

// RouteOf says where mail for a recipient goes: by a learned route, or to the
// account of that very name.
func (r *Routes) RouteOf(rcpt string) (row.Route, bool) {
	key := strings.ToLower(rcpt)
	if x, ok := r.learned(key); ok {
		return x, true
	}
	if name, ok := r.accounts.Resolve(rcpt); ok {
		return row.Route{Recipient: key, Account: name, Mailbox: "INBOX"}, true
	}
	if local, dom, ok := strings.Cut(rcpt, "@"); ok && slices.Contains(r.domains, strings.ToLower(dom)) {
		if name, ok := r.accounts.Resolve(local); ok {
			return row.Route{Recipient: key, Account: name, Mailbox: "INBOX"}, true
		}
	}
	// user+detail@domain is the user's (RFC 5233), unless it has a route of its own.
	if local, dom, ok := strings.Cut(key, "@"); ok {
		if user, _, ok := strings.Cut(local, "+"); ok {
			return r.RouteOf(user + "@" + dom)
		}
	}
	return row.Route{}, false
}

// AllRoutes lists what was learned.
func (r *Routes) AllRoutes() []row.Route {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]row.Route, 0, len(r.m))
	for _, x := range r.m {
		out = append(out, x)
	}
	slices.SortFunc(out, func(a, b row.Route) int { return strings.Compare(a.Recipient, b.Recipient) })
	return out
}

// Show takes note of routes that are durable.
func (r *Routes) Show(list []row.Route) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, x := range list {
		r.m[x.Recipient] = x
	}
}
