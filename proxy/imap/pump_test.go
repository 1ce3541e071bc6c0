package imap

import (
	"bytes"
	"net"
	"testing"
)

// B2: a long line of a server is held until it is whole, so that a session that is
// cut within it can go on; the memory is given back.
func TestB2_LongLine(t *testing.T) {
	near, far := net.Pipe()
	defer func() { _ = near.Close() }()
	line := append(bytes.Repeat([]byte("* SEARCH 12345 "), 100_000), '\r', '\n')
	go func() {
		for _, b := range [][]byte{line, []byte("a OK\r\n"), bytes.Repeat([]byte("x"), 2*lineMax)} {
			if _, err := far.Write(b); err != nil {
				return
			}
		}
	}()
	win := window{max: lineMax}
	for win.w < len(line) {
		if err := win.fill(near); err != nil || win.full() && win.w < len(line) {
			t.Fatalf("a line of %d bytes: %d are held, %v", len(line), win.w, err)
		}
	}
	if !bytes.Equal(win.b[:len(line)], line) {
		t.Error("the line differs")
	}
	win.r = win.w
	if err := win.fill(near); err != nil || len(win.b) > bufMax {
		t.Errorf("%d bytes are kept, %v", len(win.b), err)
	}
	for !win.full() {
		if err := win.fill(near); err != nil || len(win.b) > lineMax {
			t.Fatalf("%d bytes are held, %v", len(win.b), err)
		}
	}
}
