# Corten's build. `make demo` and `make test` are all a new machine needs; see README.md.
#
# Where a step needs root and you are not root, it says so and uses sudo.

PREFIX ?= /usr/local
DESTDIR ?=
CARGO ?= cargo
TARGET := $(shell uname -m)-unknown-linux-gnu
SHIM := containerd-shim-corten-v2
RELEASE := target/release
DEST := $(DESTDIR)$(PREFIX)

.DEFAULT_GOAL := build
.PHONY: build deps demo test test-reference test-cri-suite bench bench-cri install fmt lint help test-vm

help:
	@echo 'make demo             install what is missing, build, run a container, clean up'
	@echo 'make test             install what is missing, build, run every test'
	@echo 'make test-vm          boot other kernels in QEMU and run the tests of the shim there'
	@echo 'make test-reference   run the behaviour tests against stock containerd'
	@echo 'make test-cri-suite   run containerd'"'"'s CRI suite against Corten'
	@echo 'make bench            measure Corten beside stock containerd'
	@echo 'make bench-cri        measure the CRI of both'
	@echo 'make build            build $(RELEASE)/cortend and $(RELEASE)/$(SHIM)'
	@echo 'make install PREFIX=DIR'
	@echo 'make deps | fmt | lint'

# Debian packages, and the reference programs that the tests compare with.
deps:
	@integration/setup.sh

# The shim is built alone, so that no feature of the daemon's crates leaks into it, and static, so
# that it runs whatever the container's root looks like and shares its pages with its siblings.
build:
	@integration/setup.sh packages
	$(CARGO) build --release -p cortend
	RUSTFLAGS='-C target-feature=+crt-static' LIBSECCOMP_LINK_TYPE=static \
	LIBSECCOMP_LIB_PATH=/usr/lib/$$(gcc -print-multiarch) \
	$(CARGO) build --profile shim -p $(SHIM) --target $(TARGET)
	@cp -f target/$(TARGET)/shim/$(SHIM) $(RELEASE)/.$(SHIM).new
	@mv -f $(RELEASE)/.$(SHIM).new $(RELEASE)/$(SHIM)
	@! ldd $(RELEASE)/$(SHIM) 2>/dev/null | grep '=>' || { echo '$(SHIM) is not static'; exit 1; }

demo: build
	@integration/as-root.sh $(RELEASE)/cortend demo

test:
	@integration/test.sh

test-reference: deps
	CORTEN_UNDER_TEST=reference CARGO_TARGET_$(shell echo $(TARGET) | tr 'a-z-' 'A-Z_')_RUNNER=$(CURDIR)/integration/as-root.sh \
	integration/cargo-test.sh --test ctr --test shim --test cri

test-cri-suite: build
	@integration/setup.sh cri
	integration/cargo-test.sh --quiet --no-run --test shim # builds corten-images as well, and as `make test` has
	@integration/as-root.sh integration/cri/suite.sh corten

# Pure cgroup v2 and AppArmor; systemd as init. Without KVM it takes the better part of an hour.
test-vm: build deps
	@integration/vm/run.sh

bench: build deps
	$(CARGO) build --release -p corten-integration --bin corten-bench
	@integration/as-root.sh $(RELEASE)/corten-bench

bench-cri: build deps
	$(CARGO) build --release -p corten-integration --bin corten-images --bin corten-bench-cri
	@integration/as-root.sh integration/cri/bench.sh

install: build
	install -d $(DEST)/bin $(DEST)/lib/systemd/system $(DEST)/etc/containerd
	install -m 755 $(RELEASE)/cortend $(RELEASE)/$(SHIM) $(DEST)/bin/
	sed 's|@PREFIX@|$(PREFIX)|g' daemon/cortend.service.in >$(DEST)/lib/systemd/system/cortend.service
	@chmod 644 $(DEST)/lib/systemd/system/cortend.service
	$(RELEASE)/cortend config default >$(DEST)/etc/containerd/config.toml.default
	@[ -e $(DEST)/etc/containerd/config.toml ] || \
		cp $(DEST)/etc/containerd/config.toml.default $(DEST)/etc/containerd/config.toml
	install -d $(DEST)/share/man/man8 $(DEST)/share/bash-completion/completions \
		$(DEST)/share/zsh/site-functions $(DEST)/share/fish/vendor_completions.d
	$(RELEASE)/cortend man $(DEST)/share/man/man8
	$(RELEASE)/cortend completion bash >$(DEST)/share/bash-completion/completions/cortend
	$(RELEASE)/cortend completion zsh >$(DEST)/share/zsh/site-functions/_cortend
	$(RELEASE)/cortend completion fish >$(DEST)/share/fish/vendor_completions.d/cortend.fish

fmt:
	$(CARGO) fmt --all

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
