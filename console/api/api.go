// Package api holds the typed calls that the commands and the console make,
// over the control socket.
package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"understudy/replica/row"
)

// Status is the whole picture.
//
// Large: it is one answer of the control socket, flat as its readers know it.
type Status struct {
	Phase     string    `json:"phase"`
	Since     time.Time `json:"since"`
	Why       string    `json:"why"`
	Epoch     uint64    `json:"epoch"`
	Mode      string    `json:"mode"`
	Asked     bool      `json:"takeover_waits_for_confirmation"`
	Answering string    `json:"answering"` // production, standby or nobody
	Health    Health    `json:"production"`

	Accounts  int       `json:"accounts"`
	Mailboxes int       `json:"mailboxes"`
	Messages  int       `json:"messages"`
	LastSync  time.Time `json:"last_sync"` // of the account synced longest ago; zero: unknown
	Seeded    bool      `json:"replica_complete"`
	Held      int       `json:"held_deliveries"`
	Queued    int       `json:"outbound_queue"`
	Verifiers int       `json:"learned_logins"`
	Routes    int       `json:"learned_routes"`
	Blobs     int       `json:"stored_messages"`
	Bytes     int64     `json:"stored_bytes"`
	DiskFree  int64     `json:"disk_free_bytes"`

	Fetched  int64    `json:"bodies_fetched"`
	FromWire int64    `json:"bodies_from_wire"`
	Wire     int64    `json:"changes_settled_from_wire"`
	BySync   int64    `json:"changes_settled_by_sync"`
	History  []Entry  `json:"history"`
	CopyBack any      `json:"copy_back,omitempty"`
	Problems []string `json:"problems,omitempty"`
	Network  *Network `json:"network,omitempty"`
	Tap      *Tap     `json:"mirror_port,omitempty"`
}

// Tap is what was seen on a mirror port.
type Tap struct {
	Sessions  int64 `json:"sessions"`           // connections seen from their beginning
	TLS       int64 `json:"tls"`                // of these, with TLS: not followed
	Midway    int64 `json:"packets_of_others"`  // of connections whose beginning was not seen
	Gaps      int64 `json:"gaps"`               // connections that lost data
	Lost      int64 `json:"lost_frames"`        //
	Changes   int64 `json:"changes"`            // settled
	Messages  int64 `json:"messages"`           // kept from SMTP
	Abandoned int64 `json:"sessions_abandoned"` // not understood
}

// Network is how the box stands in the wire.
type Network struct {
	Armed   bool   `json:"armed"`  // new connections come to the box
	Fenced  bool   `json:"fenced"` // production is kept apart, or its address taken
	Cable   bool   `json:"cable"`  // production's
	MAC     string `json:"mac"`    // of production
	Past    int    `json:"past"`   // connections that run past the box
	Problem string `json:"problem,omitempty"`
}

// Health is the last probe of production.
type Health struct {
	OK    bool      `json:"ok"`
	Cause string    `json:"cause,omitempty"`
	At    time.Time `json:"at"`
}

// Entry is one change of the failover state.
type Entry struct {
	At    time.Time `json:"at"`
	Phase string    `json:"phase"`
	Epoch uint64    `json:"epoch"`
	Why   string    `json:"why"`
}

// Account is one account with its mailboxes summed up.
type Account struct {
	row.Account
	Mailboxes int    `json:"mailboxes"`
	Messages  int    `json:"messages"`
	Answering string `json:"answering"`
}

// Order is a call that changes something.
type Order struct {
	Accounts []string `json:"accounts,omitempty"`
	Wait     bool     `json:"wait"`
	DryRun   bool     `json:"dry_run"`
	Off      bool     `json:"off,omitempty"` // of what can be on or off
}

// Answer is the outcome of an order.
type Answer struct {
	Text string `json:"text"`
}

// Service is what answers the calls.
type Service interface {
	Status() (Status, error)
	Accounts() ([]Account, error)
	Tasks(job string) ([]row.Task, error)
	Routes() ([]row.Route, error)
	// Losses is the ledger of the last takeover.
	Losses() (row.Loss, error)
	// Fingerprint lists what the replica holds of an account, a line for each
	// mailbox and message.
	Fingerprint(account string) ([]string, error)
	Takeover(ctx context.Context, o Order) (Answer, error)
	Handback(ctx context.Context, o Order) (Answer, error)
	Sync(ctx context.Context, o Order) (Answer, error)
	Acknowledge(ctx context.Context, o Order) (Answer, error)
	Scrub(ctx context.Context, o Order) (Answer, error)
	// Bypass has new connections go straight to production, or (Off) no more.
	Bypass(ctx context.Context, o Order) (Answer, error)
	// Gather resets connections that run past the box.
	Gather(ctx context.Context, o Order) (Answer, error)
}

// Handler serves a Service.
func Handler(s Service) http.Handler {
	mux := http.NewServeMux()
	get(mux, "/v1/status", func(*http.Request) (any, error) { return s.Status() })
	get(mux, "/v1/accounts", func(*http.Request) (any, error) { return s.Accounts() })
	get(mux, "/v1/tasks", func(r *http.Request) (any, error) { return s.Tasks(r.URL.Query().Get("job")) })
	get(mux, "/v1/losses", func(*http.Request) (any, error) { return s.Losses() })
	get(mux, "/v1/routes", func(*http.Request) (any, error) { return s.Routes() })
	get(mux, "/v1/fingerprint",
		func(r *http.Request) (any, error) { return s.Fingerprint(r.URL.Query().Get("account")) })
	order(mux, "takeover", s.Takeover)
	order(mux, "handback", s.Handback)
	order(mux, "sync", s.Sync)
	order(mux, "acknowledge", s.Acknowledge)
	order(mux, "scrub", s.Scrub)
	order(mux, "bypass", s.Bypass)
	order(mux, "gather", s.Gather)
	return mux
}

func get(mux *http.ServeMux, path string, f func(*http.Request) (any, error)) {
	mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
		v, err := f(r)
		answer(w, v, err)
	})
}

func order(mux *http.ServeMux, name string, f func(context.Context, Order) (Answer, error)) {
	mux.HandleFunc("POST /v1/"+name, func(w http.ResponseWriter, r *http.Request) {
		var o Order
		if err := json.NewDecoder(io.LimitReader(r.Body, 1<<20)).Decode(&o); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		v, err := f(r.Context(), o)
		answer(w, v, err)
	})
}

func answer(w http.ResponseWriter, v any, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusConflict)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

// Client makes the calls.
type Client struct{ Socket string }

// ErrDown tells that no Understudy listens on the socket.
var ErrDown = errors.New("understudy is not running")

// Get makes a reading call.
func (c Client) Get(ctx context.Context, path string, v any) error {
	return c.call(ctx, http.MethodGet, path, nil, v)
}

// Do makes a changing call.
func (c Client) Do(ctx context.Context, name string, o Order) (Answer, error) {
	b, err := json.Marshal(o)
	if err != nil {
		return Answer{}, err
	}
	var a Answer
	return a, c.call(ctx, http.MethodPost, "/v1/"+name, b, &a)
}

func (c Client) call(ctx context.Context, method, path string, body []byte, v any) error {
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", c.Socket)
	}}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, method, "http://understudy"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: tr}).Do(req)
	var oe *net.OpError
	switch {
	case errors.As(err, &oe) && oe.Op == "dial" && errors.Is(err, os.ErrPermission):
		return fmt.Errorf("control socket %s: permission denied; run as the user of the service, or as root", c.Socket)
	case errors.As(err, &oe) && oe.Op == "dial":
		return fmt.Errorf("%w: nothing listens on %s; start it with `understudy serve`", ErrDown, c.Socket)
	case err != nil:
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
		return errors.New(string(bytes.TrimSpace(b)))
	}
	return json.NewDecoder(resp.Body).Decode(v)
}
