# `make listen` and `make test` need nothing but Python 3.10 or later and the network of the first run.

PYTHON ?= python3
ARGS   ?=

# A plain torch would pull gigabytes of CUDA, and pyproject.toml gives a range that pip answers with the newest. So the
# tests pin one version and install it first: from disk or as a CPU build where pip finds such a wheel, the platform's
# own wheel elsewhere. To choose: make test TORCH="torch==2.13.0 --index-url ..."
TORCH ?= torch==2.13.0

# Sound for the tests of the microphone, a browser for those of report and console, strace for those of what leaves the machine,
# systemd-analyze for the service's unit, a broker for the messages; without them they are skipped.
SYSTEM_PACKAGES = libportaudio2 pulseaudio pulseaudio-utils libasound2-plugins chromium strace systemd mosquitto

# A core each. A file's tests stay together, for they share what takes long to make.
TESTS_AT_ONCE ?= 2

DEVICE = .venv
TEST   = .venv-test

export HF_HUB_OFFLINE = 1
# Idle OpenMP threads would otherwise spin, which on few cores costs more than it saves.
export OMP_WAIT_POLICY = PASSIVE
export PIP_DISABLE_PIP_VERSION_CHECK = 1

MAKEFLAGS += --no-builtin-rules --no-print-directory
.SUFFIXES:
.NOTPARALLEL:
.PHONY: help listen test soak deb lint format clean device-environment test-environment system-packages

help:
	@echo "make listen   set up the device and run it on the built-in demo auscultation (ARGS=... for more options)"
	@echo "              .venv/bin/pip install -e '.[console]', then ARGS=--console: the same in a browser"
	@echo "make test     set up everything, then check format, lint and types and run the tests (ARGS=... for pytest)"
	@echo "make soak     the tests of unplugged microphones, killed processes and damaged files in full length, and of the"
	@echo "              Debian package in a Debian that boots (needs root)"
	@echo "make deb      the device as a Debian package in dist/, for machines with this architecture and this Python"
	@echo "make lint     check format, lint and types"
	@echo "make format   format the code"
	@echo "make clean    remove the environments and caches"

listen: device-environment
	@$(DEVICE)/bin/respsam-device listen --source demo $(ARGS)

test: system-packages lint
	@echo "== pytest"
	@$(TEST)/bin/python -m pytest -n $(TESTS_AT_ONCE) --dist loadfile $(ARGS)

# The faults of a month in an hour: every repetition of the tests that .ci/run runs in a shortened form.
soak: SYSTEM_PACKAGES += systemd-container debootstrap # a Debian to boot for the package
soak: system-packages test-environment
	@RESPSAM_SOAK=1 $(TEST)/bin/python -m pytest tests/device tests/test_debian.py $(ARGS)

VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
deb: device-environment
	@packaging/build-deb $(DEVICE)/bin/python $(VERSION) dist

lint: test-environment
	@echo "== ruff format --check"
	@$(TEST)/bin/python -m ruff format --check --quiet .
	@echo "== ruff check"
	@$(TEST)/bin/python -m ruff check --quiet .
	@echo "== mypy"
	@$(TEST)/bin/python -m mypy
	@echo "== mypy as on Python 3.10, the oldest that a device has"
	@$(TEST)/bin/python -m mypy --python-version 3.10 --no-warn-return-any --no-warn-unused-ignores firmware_config device trainer export

format: test-environment
	@$(TEST)/bin/python -m ruff check --quiet --fix .
	@$(TEST)/bin/python -m ruff format .

clean:
	rm -rf $(DEVICE) $(TEST) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# $(call environment,FOLDER,WHAT TO INSTALL IN WORDS,PIP ARGUMENTS OF ONE STEP[,OF A STEP BEFORE IT[,OF ONE AFTER IT
# that may fail]])
# The stamp holds what was installed, by content: a touched pyproject.toml reinstalls nothing, a moved clone does.
define environment
	@set -eu; \
	wanted="$(CURDIR) $(4) $(3) $(5) $$(cksum < pyproject.toml)"; \
	if [ "$$(cat $(1)/installed 2>/dev/null)" = "$$wanted" ]; then exit 0; fi; \
	say() { echo "$$*" >&2; exit 1; }; \
	if ! $(1)/bin/python -m pip --version >/dev/null 2>&1; then \
		command -v "$(PYTHON)" >/dev/null || say "$(PYTHON) not found: install Python 3.10 or later, or name it: make PYTHON=/path/to/python3"; \
		"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
			say "$$("$(PYTHON)" --version 2>&1) is too old: RespSAM needs 3.10 or later; name one: make PYTHON=/path/to/python3.10"; \
		echo "== creating $(1) ($$("$(PYTHON)" --version 2>&1))"; \
		if "$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null; then "$(PYTHON)" -m venv --clear $(1); \
		elif "$(PYTHON)" -c 'import virtualenv' 2>/dev/null; then "$(PYTHON)" -m virtualenv --quiet --clear $(1); \
		else say "$(PYTHON) has no venv: install it (Debian, Ubuntu, JetPack: sudo apt-get install python3-venv) and run make again"; fi; \
	fi; \
	rm -f $(1)/installed; \
	echo "== installing $(2) into $(1) (the first time this takes some minutes)"; \
	$(if $(4),$(1)/bin/python -m pip install -qq $(4);) \
	$(1)/bin/python -m pip install -qq $(3); \
	$(if $(5),$(1)/bin/python -m pip install -qq $(5) || echo "== skipped: $(5) cannot be installed here; its tests will be skipped and say so";) \
	echo "$$wanted" > $(1)/installed
endef

device-environment:
	$(call environment,$(DEVICE),the device,-e .)

test-environment:
	$(call environment,$(TEST),everything with the test tools,-e .[train$(comma)export$(comma)cluster$(comma)console$(comma)fhir$(comma)mqtt$(comma)dev],$(TORCH),-e .[tensorrt-check])

comma := ,

# --no-remove: a desktop with PipeWire would otherwise lose it to PulseAudio.
system-packages:
	@missing=""; \
	for package in $(SYSTEM_PACKAGES); do \
		dpkg-query -W -f='$${Status}' $$package 2>/dev/null | grep -q "ok installed" || missing="$$missing $$package"; \
	done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if ! command -v apt-get >/dev/null; then echo "== system packages skipped (no apt-get):$$missing"; exit 0; fi; \
	if [ "$$(id -u)" = 0 ]; then as=""; \
	elif sudo -n true 2>/dev/null; then as="sudo -n"; \
	else echo "== system packages skipped (not root; to have them: sudo apt-get install$$missing)"; exit 0; fi; \
	echo "== installing system packages:$$missing"; \
	options="-qq -o Acquire::Retries=1 -o Acquire::http::Timeout=20 -o DPkg::Lock::Timeout=60"; \
	$$as apt-get $$options update >/dev/null 2>&1; \
	$$as env DEBIAN_FRONTEND=noninteractive apt-get $$options install -y --no-install-recommends --no-remove $$missing >/dev/null 2>&1 \
		|| echo "== system packages skipped (apt-get could not install them):$$missing"
