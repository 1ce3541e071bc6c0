# make demo   the main job, with an embedded mail server; no root, about 15 s
# make test   installs what the tests need (Debian, as root), then runs all of them
# make check  what needs nothing installed: formatting, vet, staticcheck, unit tests with the race detector
# make bench  the figures, beside nginx, HAProxy, doveadm and mbsync; UNDERSTUDY_BEFORE=/path/to/an/older/understudy: beside that
# make gen    what is generated and committed
# make help   this text

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
# What Cyrus IMAP needs, which cannot be installed beside Dovecot and is unpacked.
CYRUS := sasl2-bin libsasl2-modules libclamav12 libical3 libjansson4 libpcre3 libpq5 libwrap0 libxapian30 libzephyr4
PACKAGES := dovecot-imapd dovecot-lmtpd postfix isync offlineimap3 mutt bsdutils nginx libnginx-mod-mail haproxy gcc libc6-dev ca-certificates $(CYRUS)
# By number of inputs: by time, the fuzzer may call the end of its time a failure.
FUZZTIME ?= 50000x
UNITS := $$(go list ./... | grep -v '/lab$$')

.PHONY: demo test check unit fuzz lab bench gen help deps go
demo: go
	go build -o bin/understudy ./cmd/understudy
	bin/understudy demo

test: deps check fuzz demo lab
	git diff --exit-code -- docs

check: go gen
	@test -z "$$(gofmt -l .)" || { echo "gofmt would change:"; gofmt -l .; exit 1; }
	go vet ./...
	go tool staticcheck ./...
	go test -race $(UNITS)
	UNDERSTUDY_SEEDS=60 go test -count=1 -run Simulated ./lab/sim

fuzz: go
	@while read -r pkg name; do \
		echo "fuzz $$name in $$pkg for $(FUZZTIME)"; \
		out=$$(go test $$pkg -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) 2>&1) || { echo "$$out"; exit 1; }; \
		tail -n 2 <<<"$$out"; \
	done < <(grep -rHoE --include='*_test.go' '^func Fuzz[A-Za-z]+' . | sed -E 's,^\./(.*)/[^/]+:func (Fuzz.*),./\1 \2,')

# The lab runs real Dovecot and Postfix on loopback, and needs root. First with
# the race detector in the binary under test, then everything.
lab: deps
	UNDERSTUDY_RACE=1 UNDERSTUDY_KILLS=3 go test -count=1 -timeout 10m -run 'TestB5|TestT7|TestB9|TestT18|TestT17_OneArm' ./lab
	go test -count=1 -timeout 45m ./lab

bench: deps
	go test -run '^$$' -bench . -benchtime 1s ./snoop/imapwire
	UNDERSTUDY_BENCH=1 go test -count=1 -timeout 30m -v -run TestBench ./lab

gen: go
	go run ./cmd/understudy diagram failover > docs/failover.mmd
	go run ./cmd/understudy diagram held > docs/held.mmd
	go run ./cmd/understudy diagram doubt > docs/doubt.mmd
	go run ./cmd/understudy diagram imapsession > docs/imapsession.mmd
	go run ./cmd/understudy diagram smtpsession > docs/smtpsession.mmd
	go run ./cmd/understudy config describe > docs/understudy.toml

deps: go
	@if [ "$$(dpkg-query -W -f '$${Status}\n' $(PACKAGES) 2>/dev/null | grep -c 'ok installed')" != $(words $(PACKAGES)) ]; then \
		test "$$(id -u)" = 0 || { echo "installing $(PACKAGES) needs root: run make test as root"; exit 1; }; \
		apt-get update -qq; \
		printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d; chmod +x /usr/sbin/policy-rc.d; \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(PACKAGES) >/dev/null; \
		rm -f /usr/sbin/policy-rc.d; \
	fi
	@if [ ! -d bin/cyrus ]; then \
		dir=$$(mktemp -d); \
		(cd $$dir; get() { apt-get download -qq -o APT::Sandbox::User=root cyrus-common cyrus-imapd; }; get || { apt-get update -qq; get; }); \
		for deb in $$dir/*.deb; do dpkg -x $$deb $$dir/root; done; \
		mkdir -p bin; mv $$dir/root bin/cyrus; rm -rf $$dir; \
	fi

go:
	@command -v go >/dev/null || { echo "Go 1.26 or newer is needed: https://go.dev/dl"; exit 1; }

help:
	@sed -n 's/^# //p' Makefile | head -n 6
