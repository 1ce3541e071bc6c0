package lab

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"regexp"
	"strconv"
	"sync"
	"testing"
	"time"

	"understudy/lab/site"
	"understudy/replica/imapc"
)

// mail makes message i of a user: mostly ordinary, some of the shapes that break
// parsers.
func mail(rng *rand.Rand, i int, user string) []byte {
	switch i % 25 {
	case 3: // 8-bit, without a MIME header
		return []byte(fmt.Sprintf("Subject: Gr\xfc\xdfe %d\r\nFrom: x@y\r\n\r\n\xe4\xf6\xfc %d\r\n", i, i))
	case 7: // multipart without end, header without colon
		return []byte(
			fmt.Sprintf(
				"Subject: broken %d\r\nno colon here\r\nContent-Type: multipart/mixed; "+
					"boundary=\"b\"\r\n\r\n--b\r\nContent-Type: text/plain\r\n\r\nhalf %d\r\n", i, i))
	case 11: // no header at all
		return []byte(fmt.Sprintf("\r\nbody only %d\r\n", i))
	case 15: // an attachment
		return append(message(fmt.Sprint(i, user), 200),
			bytes.Repeat([]byte("QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVo=\r\n"), 1000+rng.IntN(3000))...)
	}
	return message(fmt.Sprintf("m%d-%s", i, user), 500+rng.IntN(6000))
}

// fill gives a user messages in several folders.
func fill(t *testing.T, s *site.Site, user string, n int) {
	rng := rand.New(rand.NewPCG(7, uint64(n)))
	c, err := s.Direct(t.Context(), user)
	if err != nil {
		t.Error(err)
		return
	}
	defer c.Close()
	boxes := []string{"INBOX", "Archive/2025/Q&AOQ-", "Projekte &APw-ber alles", "Sent"}
	for _, b := range boxes[1:] {
		if _, err := c.Do("CREATE "+c.Name(b), nil); err != nil {
			t.Error(err)
			return
		}
	}
	flags := [][]string{{`\Seen`}, {}, {`\Seen`, `\Answered`, "$Forwarded"}, {`\Flagged`, "work", "NonJunk"},
		{`\Draft`}}
	var tags []string
	for i := range n {
		tag, err := c.SendAppend(imapc.Appending{Mailbox: boxes[i%len(boxes)], Flags: flags[i%len(flags)],
			Date: time.Date(2025, 1, 1, 0, i, 0, 0, time.FixedZone("", 3600)), Body: mail(rng, i, user)})
		if err != nil {
			t.Error(err)
			return
		}
		if tags = append(tags, tag); len(tags) == 50 || i == n-1 {
			for _, tag := range tags {
				if _, err := c.Wait(tag, nil); err != nil {
					t.Error(err)
					return
				}
			}
			tags = tags[:0]
		}
	}
}

var bodyCount = regexp.MustCompile(`imap\(([^)]*)\).*body_count=(\d+)`)

// bodiesRead sums up what Dovecot's log says of bodies that were fetched.
func bodiesRead(s *site.Site) (n int) {
	for _, m := range bodyCount.FindAllStringSubmatch(s.Log(), -1) {
		k, _ := strconv.Atoi(m[2])
		n += k
	}
	return n
}

// same waits until the replica equals production, for a second at most.
func same(t *testing.T, s *site.Site, b *site.Box, user string, limit time.Duration) {
	t.Helper()
	end := time.Now().Add(limit)
	for {
		c := must(s.Direct(t.Context(), user))(t)
		want := must(site.Take(c))(t)
		c.Close()
		got := must(b.Replica(t.Context(), user))(t)
		diff := want.Diff(got)
		if diff == "" {
			return
		}
		if time.Now().After(end) {
			t.Errorf("replica of %s differs from production after %s:\n%s", user, limit, diff)
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// C5-C8, E7, N11: the first copy of 20 accounts × 500 messages, killed with -9
// at 40 % and started again, is complete, and production served nearly no body
// twice: no finished batch is fetched again.
func TestE7_FirstCopyResumes(t *testing.T) {
	const each = 500
	s := newSite(t, 20)
	var wg sync.WaitGroup
	for _, u := range s.Users {
		wg.Go(func() { fill(t, s, u, each) })
		if len(u)%3 == 0 {
			wg.Wait()
		}
	}
	wg.Wait()
	c := dial(t, direct(s), s.Users[0])
	if _, _, err := c.Append(imapc.Appending{Mailbox: "INBOX", Body: message("large", 20<<20)}); err != nil {
		t.Fatal(err)
	}
	many := dial(t, direct(s), s.Users[1])
	for i := range 100 {
		do(t, many, "CREATE Folder%03d", i)
		if i%3 == 0 {
			do(t, many, "SUBSCRIBE Folder%03d", i)
		}
	}
	total := 20*each + 1
	before := bodiesRead(s)
	start := time.Now()
	b := newBox(t, s, map[string]string{"mirror.idle": "0", "mirror.sweep": `"0s"`})
	for {
		st := must(b.Status(t.Context()))(t)
		if st.Messages >= total*4/10 {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	b.Kill()
	killedAt := time.Since(start)
	if err := b.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	waitPhase(t, b, "protecting")
	t.Logf("first copy of %d messages: killed after %s, complete after %s", total, killedAt.Round(time.Millisecond),
		time.Since(start).Round(time.Millisecond))
	if out := order(t, b, "tasks", "--job", "sweep"); out == "" {
		t.Error("no tasks are listed")
	}
	b.Kill() // its sessions end, and are logged
	time.Sleep(300 * time.Millisecond)
	read := bodiesRead(s) - before
	// What was under way at the kill is read twice: two batches of each of
	// four streams.
	if limit := total + 4*2*400; read < total || read > limit {
		t.Errorf("production served %d bodies for %d messages (limit %d)", read, total, limit)
	}
	t.Logf("production served %d bodies for %d messages", read, total)
	if err := b.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	waitPhase(t, b, "protecting")
	for _, u := range s.Users {
		same(t, s, b, u, time.Second)
	}
	fetched := must(b.Status(t.Context()))(t).Fetched
	order(t, b, "sync")
	if n := must(b.Status(t.Context()))(t).Fetched - fetched; n != 0 {
		t.Errorf("E12: a sync without changes fetched %d bodies", n)
	}
}
