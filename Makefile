# The scripts under the names that people with Make expect; nothing is done here that scripts/ or dockwarden does not do.
# STACK=name where a target is about one stack.

SHELL := /bin/bash
STACK ?= hello
COMPOSE ?= docker compose -f docker-compose.mcp.yml

.DEFAULT_GOAL := help
.PHONY: help start stop test docker-build-all prod-up prod-down health-check clean-rebuild env-validate backup logs

help: ## What there is
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name what; do printf '%-18s %s\n' "$$name" "$$what"; done

start: ## Build, start the supervisor, deploy the demo
	./scripts/start.sh

stop: ## Stop the supervisor; stacks keep running
	./scripts/stop.sh

test: ## Every test
	./scripts/test.sh

docker-build-all: ## The images of the supervisor (dockwarden:local) and of the demo, FROM scratch
	./scripts/image.sh supervisor --tag dockwarden:local
	./scripts/image.sh demo

prod-up: env-validate docker-build-all ## The supervisor as a container, with .env
	$(COMPOSE) up -d --wait

prod-down: ## Stop that container; its volumes stay
	$(COMPOSE) down

health-check: ## Exit 0 when supervisor and stacks are healthy (of the container: docker exec dockwarden /dockwarden health)
	./scripts/health-check.sh

clean-rebuild: ## Build anew from nothing, restart the supervisor, deploy the demo again if it runs
	cargo clean
	./scripts/rebuild.sh

env-validate: ## Check .env, the compose file it is for, agents, prompts and policy
	@test -f .env || { echo 'error: there is no .env: cp .env.example .env and fill it in' >&2; exit 1; }
	@for name in $$(sed -n 's/^\([A-Z_]*\)=.*/\1/p' .env); do grep -q "^$$name=" .env.example || { echo "error: .env: $$name is not in .env.example" >&2; exit 1; }; done
	$(COMPOSE) config --quiet
	@. scripts/lib.sh && need_binary && "$$BIN" --config "$(CURDIR)" policy check

backup: ## Back up STACK
	./scripts/backup.sh $(STACK)

logs: ## Logs of STACK
	./scripts/logs.sh $(STACK)
