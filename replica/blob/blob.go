// Package blob keeps immutable messages, named by their SHA-256, packed in
// segment files.
//
// Implementation notes. A record is written once, at the end of the newest
// segment, and never changed: header with CRC, payload (zstd where that saves
// something). Put returns after an fsync that it shares with all writers that
// wait for one. A torn record at the end of a segment is cut off at open; it
// was referenced by nobody, since references are made after Put. The place of
// a message is found by an index in memory, rebuilt at open from the headers
// (about 80 bytes of memory a message). Order: smu, wmu (turns), mu.
package blob

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/klauspost/compress/zstd"

	"understudy/replica/row"
	"understudy/replica/turn"
)

// Errors of a store.
var (
	ErrNotFound = errors.New("message is not in the store")
	ErrCorrupt  = errors.New("stored message is damaged")
)

const (
	headLen     = 4 + 1 + 32 + 8 + 8 + 4 // magic, flags, sum, size, stored size, CRC of all that and the payload
	magic       = 0x55445331             // "UDS1"
	flagZstd    = 1
	segmentSize = 256 << 20
)

var crcs = crc32.MakeTable(crc32.Castagnoli)

type place struct {
	seg  uint32
	off  int64 // of the header
	size int64 // stored payload
}

// Store is one directory of segments.
type Store struct {
	dir string
	enc *zstd.Encoder
	dec *zstd.Decoder

	wmu  turn.Turn // writing and the newest segment; held while the disk works
	cur  *os.File
	end  int64
	num  uint32
	gen  uint64 // records written
	fail error  // the first failed write or sync; latched

	smu    turn.Turn // syncing
	synced uint64    // gen that is durable

	mu    sync.RWMutex
	index map[[sha256.Size]byte]place
	files map[uint32]*os.File
}

// Open opens or makes a store in dir.
func Open(dir string) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make message store: %w", err)
	}
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(2))
	if err != nil {
		return nil, err
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(2), zstd.WithDecoderMaxMemory(1<<30))
	if err != nil {
		return nil, err
	}
	s := &Store{dir: dir, enc: enc, dec: dec, index: map[[32]byte]place{}, files: map[uint32]*os.File{},
		wmu: turn.New(), smu: turn.New()}
	names, err := filepath.Glob(filepath.Join(dir, "seg-*.pack"))
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	for i, name := range names {
		if err := s.load(name, i == len(names)-1); err != nil {
			return nil, errors.Join(err, s.Close())
		}
	}
	for _, n := range leftovers(dir) {
		_ = os.Remove(n)
	}
	if s.cur == nil {
		return s, s.roll()
	}
	return s, nil
}

func leftovers(dir string) []string {
	names, _ := filepath.Glob(filepath.Join(dir, "spool-*"))
	return names
}

// load indexes a segment. In the newest a torn end is cut off.
func (s *Store) load(name string, newest bool) error {
	var num uint32
	if _, err := fmt.Sscanf(filepath.Base(name), "seg-%d.pack", &num); err != nil {
		return fmt.Errorf("segment %s: strange name", name)
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("open segment: %w", err)
	}
	s.files[num] = f
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	off, lastBad := int64(0), false
	var head [headLen]byte
	for off < fi.Size() {
		if _, err := f.ReadAt(head[:], off); err != nil || binary.BigEndian.Uint32(head[:]) != magic {
			lastBad = true
			break
		}
		p := place{num, off, int64(binary.BigEndian.Uint64(head[45:]))}
		next := off + headLen + p.size
		if p.size < 0 || next > fi.Size() {
			lastBad = true
			break
		}
		if next == fi.Size() && newest && !s.whole(f, head[:], p) {
			lastBad = true
			break
		}
		s.index[[32]byte(head[5:37])] = p
		off = next
	}
	if lastBad && !newest {
		return fmt.Errorf("%w: segment %s at byte %d; restore the file from a copy, or move it away and run a sync",
			ErrCorrupt, name, off)
	}
	if newest {
		if lastBad {
			if err := f.Truncate(off); err != nil {
				return fmt.Errorf("cut torn record: %w", err)
			}
		}
		s.cur, s.num, s.end = f, num, off
	}
	return nil
}

func (s *Store) whole(f *os.File, head []byte, p place) bool {
	payload := make([]byte, p.size)
	if _, err := f.ReadAt(payload, p.off+headLen); err != nil {
		return false
	}
	return sum(head, payload) == binary.BigEndian.Uint32(head[53:])
}

func sum(head, payload []byte) uint32 {
	return crc32.Update(crc32.Checksum(head[:53], crcs), crcs, payload)
}

// roll begins a new segment. wmu is held, or nobody else knows s.
func (s *Store) roll() error {
	name := filepath.Join(s.dir, fmt.Sprintf("seg-%08d.pack", s.num+1))
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("make segment: %w", err)
	}
	if s.cur != nil {
		if err := s.cur.Sync(); err != nil {
			return fmt.Errorf("sync segment: %w", err)
		}
	}
	if err := syncDir(s.dir); err != nil {
		return err
	}
	s.num++
	s.cur, s.end = f, 0
	s.mu.Lock()
	s.files[s.num] = f
	s.mu.Unlock()
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Close closes the files; writers must be gone.
func (s *Store) Close() error {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	var errs []error
	for _, f := range s.open() {
		errs = append(errs, f.Close())
	}
	s.fail = os.ErrClosed
	return errors.Join(errs...)
}

// Put stores b, durably, and returns its name. Storing it again is free.
func (s *Store) Put(b []byte) (row.Ref, error) {
	ref, err := s.Add(b)
	if err != nil {
		return ref, err
	}
	return ref, s.Sync()
}

// Add stores b without waiting for the disk; call Sync before anything refers
// to it.
func (s *Store) Add(b []byte) (row.Ref, error) {
	ref := row.RefOf(b)
	if s.Has(ref) {
		return ref, nil
	}
	payload, flags := b, byte(0)
	if len(b) > 256 {
		if z := s.enc.EncodeAll(b, make([]byte, 0, len(b)/2+128)); len(z) < len(b)*9/10 {
			payload, flags = z, flagZstd
		}
	}
	rec := make([]byte, headLen, headLen+len(payload))
	binary.BigEndian.PutUint32(rec, magic)
	rec[4] = flags
	copy(rec[5:], ref.Sum[:])
	binary.BigEndian.PutUint64(rec[37:], uint64(ref.Size))
	binary.BigEndian.PutUint64(rec[45:], uint64(len(payload)))
	binary.BigEndian.PutUint32(rec[53:], sum(rec, payload))
	return ref, s.write(append(rec, payload...), ref)
}

func (s *Store) write(rec []byte, ref row.Ref) error {
	s.wmu.Lock()
	defer s.wmu.Unlock()
	if s.fail != nil {
		return s.fail
	}
	if s.end > segmentSize {
		if err := s.roll(); err != nil {
			return err
		}
	}
	if _, err := s.cur.WriteAt(rec, s.end); err != nil {
		// The bytes behind end are nobody's; a later write starts there again.
		return fmt.Errorf("write message: %w", err)
	}
	s.mu.Lock()
	s.index[ref.Sum] = place{s.num, s.end, int64(len(rec) - headLen)}
	s.mu.Unlock()
	s.end += int64(len(rec))
	s.gen++
	return nil
}

// Sync makes all that was added before durable. After a failed sync every
// call fails: what the disk holds is then unknown until the store is reopened.
func (s *Store) Sync() error {
	s.wmu.Lock()
	want := s.gen
	s.wmu.Unlock()
	s.smu.Lock()
	defer s.smu.Unlock()
	if s.synced >= want {
		return nil
	}
	s.wmu.Lock()
	gen, f, fail := s.gen, s.cur, s.fail
	s.wmu.Unlock()
	if fail != nil {
		return fail
	}
	if err := f.Sync(); err != nil {
		err = fmt.Errorf("sync messages: %w", err)
		s.wmu.Lock()
		s.fail = err
		s.wmu.Unlock()
		return err
	}
	s.synced = gen
	return nil
}

// Has reports whether the store holds a message.
func (s *Store) Has(ref row.Ref) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	_, ok := s.index[ref.Sum]
	return ok
}

// Get reads a message and verifies it.
func (s *Store) Get(ref row.Ref) ([]byte, error) {
	s.mu.RLock()
	p, ok := s.index[ref.Sum]
	f := s.files[p.seg]
	s.mu.RUnlock()
	if !ok {
		return nil, fmt.Errorf("%w: %s", ErrNotFound, ref)
	}
	rec := make([]byte, headLen+p.size)
	if _, err := f.ReadAt(rec, p.off); err != nil {
		return nil, fmt.Errorf("read message %s: %w", ref, err)
	}
	payload := rec[headLen:]
	if sum(rec, payload) != binary.BigEndian.Uint32(rec[53:]) {
		return nil, fmt.Errorf("%w: %s in segment %d at byte %d", ErrCorrupt, ref, p.seg, p.off)
	}
	if rec[4]&flagZstd != 0 {
		out, err := s.dec.DecodeAll(payload, make([]byte, 0, ref.Size))
		if err != nil {
			return nil, fmt.Errorf("%w: %s: %v", ErrCorrupt, ref, err)
		}
		payload = out
	}
	if int64(len(payload)) != ref.Size {
		return nil, fmt.Errorf("%w: %s has another size", ErrCorrupt, ref)
	}
	return payload, nil
}

// Scrub reads every message and compares it with its name. It calls bad for
// each that is damaged, and returns how many it read.
func (s *Store) Scrub(bad func(sum string, err error)) int {
	s.mu.RLock()
	all := maps.Clone(s.index)
	s.mu.RUnlock()
	files := s.open()
	for name, p := range all {
		var head [headLen]byte
		ref := row.Ref{Sum: name, Size: -1}
		if _, err := files[p.seg].ReadAt(head[:], p.off); err == nil {
			ref.Size = int64(binary.BigEndian.Uint64(head[37:]))
		}
		b, err := s.Get(ref)
		if err == nil && sha256.Sum256(b) != ref.Sum {
			err = ErrCorrupt
		}
		if err != nil {
			bad(ref.String(), err)
		}
	}
	return len(all)
}

// Stats returns the number of messages and the bytes on disk.
func (s *Store) Stats() (messages int, bytes int64) {
	for _, f := range s.open() {
		if fi, err := f.Stat(); err == nil {
			bytes += fi.Size()
		}
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.index), bytes
}

// open returns the files of all segments.
func (s *Store) open() map[uint32]*os.File {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return maps.Clone(s.files)
}

// Spool collects a message of unknown length: in memory up to 1 MiB, then in
// a file. It is for one goroutine.
type Spool struct {
	s   *Store
	buf []byte
	f   *os.File
	n   int64

	started chan struct{}
	ref     row.Ref
	err     error
}

const spoolMemory = 1 << 20

// Spool begins a message.
func (s *Store) Spool() *Spool { return &Spool{s: s} }

// Write adds to the message.
func (sp *Spool) Write(p []byte) (int, error) {
	sp.n += int64(len(p))
	if sp.f == nil && len(sp.buf)+len(p) <= spoolMemory {
		sp.buf = append(sp.buf, p...)
		return len(p), nil
	}
	if sp.f == nil {
		f, err := os.CreateTemp(sp.s.dir, "spool-")
		if err != nil {
			return 0, fmt.Errorf("spool message: %w", err)
		}
		sp.f = f
		if _, err := f.Write(sp.buf); err != nil {
			return 0, fmt.Errorf("spool message: %w", err)
		}
		sp.buf = nil
	}
	n, err := sp.f.Write(p)
	if err != nil {
		err = fmt.Errorf("spool message: %w", err)
	}
	return n, err
}

// Len is the number of bytes written.
func (sp *Spool) Len() int64 { return sp.n }

// Bytes returns the whole message.
func (sp *Spool) Bytes() ([]byte, error) {
	if sp.f == nil {
		return sp.buf, nil
	}
	b := make([]byte, sp.n)
	_, err := io.ReadFull(io.NewSectionReader(sp.f, 0, sp.n), b)
	return b, err
}

// Start begins to store the message, which is complete, so that the disk works
// while the caller waits for something else. Commit tells the outcome.
func (sp *Spool) Start() {
	sp.started = make(chan struct{})
	go func() {
		defer close(sp.started)
		var b []byte
		if b, sp.err = sp.Bytes(); sp.err == nil {
			sp.ref, sp.err = sp.s.Put(b)
		}
	}()
}

// Commit stores the message durably, and waits for it.
func (sp *Spool) Commit() (row.Ref, error) {
	if sp.started == nil {
		sp.Start()
	}
	<-sp.started
	return sp.ref, sp.err
}

// Discard frees the spool.
func (sp *Spool) Discard() {
	if sp.started != nil {
		<-sp.started
	}
	if sp.f != nil {
		name := sp.f.Name()
		_ = sp.f.Close()
		if strings.HasPrefix(filepath.Base(name), "spool-") {
			_ = os.Remove(name)
		}
		sp.f = nil
	}
	sp.buf = nil
}
