package api

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"understudy/replica/row"
)

// service answers with what it was asked.
type service struct {
	err   error
	asked string
	order Order
}

func (s *service) Status() (Status, error) {
	return Status{Phase: "serving", Epoch: 7, History: []Entry{{Why: "x"}}}, s.err
}

func (s *service) Accounts() ([]Account, error) {
	return []Account{{Account: row.Account{Name: "u"}, Mailboxes: 3, Answering: "standby"}}, s.err
}

func (s *service) Tasks(job string) ([]row.Task, error) {
	return []row.Task{{Job: job, Account: "u", Done: 2}}, s.err
}

func (s *service) Routes() ([]row.Route, error) { return []row.Route{{Recipient: "a@b"}}, s.err }

func (s *service) Losses() (row.Loss, error) { return row.Loss{Epoch: 4}, s.err }

func (s *service) Fingerprint(a string) ([]string, error) { return []string{a, "line"}, s.err }

func (s *service) note(name string, o Order) (Answer, error) {
	s.asked, s.order = name, o
	return Answer{Text: "did " + name}, s.err
}

func (s *service) Takeover(_ context.Context, o Order) (Answer, error) { return s.note("takeover", o) }

func (s *service) Handback(_ context.Context, o Order) (Answer, error) { return s.note("handback", o) }

func (s *service) Sync(_ context.Context, o Order) (Answer, error) { return s.note("sync", o) }

func (s *service) Acknowledge(_ context.Context, o Order) (Answer, error) {
	return s.note("acknowledge", o)
}

func (s *service) Scrub(_ context.Context, o Order) (Answer, error) { return s.note("scrub", o) }

func (s *service) Bypass(_ context.Context, o Order) (Answer, error) { return s.note("bypass", o) }

func (s *service) Gather(_ context.Context, o Order) (Answer, error) { return s.note("gather", o) }

// serve has a service listen on a control socket.
func serve(t *testing.T, s Service) Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "c.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: Handler(s), ReadHeaderTimeout: time.Minute}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close(); <-done })
	return Client{Socket: path}
}

func TestReading(t *testing.T) {
	s := &service{}
	c := serve(t, s)
	status, _ := s.Status()
	accounts, _ := s.Accounts()
	tasks, _ := s.Tasks("sweep")
	routes, _ := s.Routes()
	losses, _ := s.Losses()
	for path, want := range map[string]any{"/v1/status": status, "/v1/accounts": accounts, "/v1/tasks?job=sweep": tasks,
		"/v1/routes": routes, "/v1/losses": losses, "/v1/fingerprint?account=u%40x": []string{"u@x", "line"}} {
		got := reflect.New(reflect.TypeOf(want))
		if err := c.Get(t.Context(), path, got.Interface()); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		if !reflect.DeepEqual(got.Elem().Interface(), want) {
			t.Errorf("%s: %+v, want %+v", path, got.Elem(), want)
		}
	}
}

func TestOrders(t *testing.T) {
	s := &service{}
	c := serve(t, s)
	for _, name := range []string{"takeover", "handback", "sync", "acknowledge", "scrub", "bypass", "gather"} {
		o := Order{Accounts: []string{name}, Wait: true, DryRun: true, Off: true}
		a, err := c.Do(t.Context(), name, o)
		if err != nil || a.Text != "did "+name || s.asked != name || !reflect.DeepEqual(s.order, o) {
			t.Errorf("%s: %q, %v; asked %s %+v", name, a.Text, err, s.asked, s.order)
		}
	}
}

// A refusal arrives with its words, and an order is not given by reading.
func TestErrors(t *testing.T) {
	s := &service{err: errors.New("production is fenced: hand back first")}
	c := serve(t, s)
	if _, err := c.Do(t.Context(), "takeover", Order{}); err == nil || err.Error() != s.err.Error() {
		t.Errorf("an order that is refused: %v", err)
	}
	if err := c.Get(t.Context(), "/v1/status", &Status{}); err == nil || err.Error() != s.err.Error() {
		t.Errorf("a call that fails: %v", err)
	}
	s.asked = ""
	if err := c.Get(t.Context(), "/v1/takeover", &Answer{}); err == nil || s.asked != "" {
		t.Errorf("an order by GET: %v, asked %q", err, s.asked)
	}
	if _, err := c.Do(t.Context(), "status", Order{}); err == nil {
		t.Error("status by POST is answered")
	}
	if _, err := c.Do(t.Context(), "selfdestruct", Order{}); err == nil {
		t.Error("an unknown order is answered")
	}
}

func TestBadOrder(t *testing.T) {
	s := &service{}
	c := serve(t, s)
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", c.Socket)
	}}
	defer tr.CloseIdleConnections()
	r, err := (&http.Client{Transport: tr}).Post("http://x/v1/takeover", "application/json", strings.NewReader("{"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Body.Close() }()
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		t.Fatal(err)
	}
	if r.StatusCode != http.StatusBadRequest || s.asked != "" {
		t.Errorf("half an order: %s, asked %q", r.Status, s.asked)
	}
}

func TestDown(t *testing.T) {
	c := Client{Socket: filepath.Join(t.TempDir(), "none.sock")}
	err := c.Get(t.Context(), "/v1/status", &Status{})
	if !errors.Is(err, ErrDown) || !strings.Contains(err.Error(), c.Socket) {
		t.Errorf("nobody listens: %v", err)
	}
}
