# `make train` needs Python 3.10 to 3.14, make and git; the rest it gets itself. `make help` lists the targets.

# The Python that .venv is built with, and flags for the program a target runs; the last of two equal flags wins.
PYTHON ?= python3
ARGS =

VENV := .venv
PY := $(VENV)/bin/python
APT_INSTALL := apt-get install -y --no-install-recommends
SYSTEM_PACKAGES := libegl1 libgl1 libgl1-mesa-dri libglib2.0-0

# A first run with something to see within minutes, on a CPU too: small pictures, networks and batches, four skills, and
# the settings of --preset skills. If ARGS names a flag or value on the left, which decides or excludes it, the default on
# the right is left out; all of them are if another run decides.
unless = $(if $(filter $(addsuffix %,$(1)),$(ARGS)),,$(2))
TRAIN_ARGS = $(call unless,--resume --finetune_from --config,$(FIRST_RUN))
BENCHMARK = planet dreamer --preset=planet --preset=dreamer --benchmark=
FIRST_RUN = --preset skills $(call unless,--env --task $(BENCHMARK),--env cartpole_swingup --action_repeat 8) \
	$(call unless,$(BENCHMARK),--image_size 48 --batch_size 16 --hidden_dim 256) \
	$(call unless,--num_train_frames,--num_train_steps 10000) \
	--num_skills 4 --num_seed_steps 250 --eval_frequency 500 --num_eval_episodes 1 --log_frequency_step 1000

# macOS has neither EGL nor OSMesa; MuJoCo draws through GLFW there.
ifeq ($(shell uname),Darwin)
MUJOCO_GL ?= glfw
export MUJOCO_GL
endif

.DEFAULT_GOAL := help
.PHONY: help train demo test lint bench gpu-check setup venv libraries clean

help:
	@echo 'make train [ARGS="--env walker_walk"]  set up, then train DrQ + DIAYN; ARGS are flags of train.py'
	@echo 'make demo  [ARGS="--skills 3"]          set up, then play the ten skills in results/pretrained; ARGS are flags of evaluate.py'
	@echo 'make test  [ARGS="-k replay"]          set up, then run the tests in parallel; ARGS are flags of pytest'
	@echo 'make lint                              check style and types'
	@echo 'make bench [ARGS="..."]                set up, then run benchmark.py'
	@echo 'make gpu-check                         set up, then check a CUDA device: yes or no, and gpu.json'
	@echo 'make setup                             only set up: .venv, and a software renderer where none works'
	@echo 'make clean                             remove .venv and caches; runs/ stays'
	@echo 'To build .venv with another Python, add for example PYTHON=python3.12 to the first of these commands you run.'

train: setup
	$(PY) train.py $(strip $(TRAIN_ARGS) $(ARGS))

demo: setup
	$(PY) evaluate.py results/pretrained/cartpole_swingup --device cpu --video_size 128 $(ARGS)

test: setup $(VENV)/dev-installed
	$(PY) -m pytest -n auto --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(VENV)/dev-installed
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy .

bench: setup
	$(PY) benchmark.py $(ARGS)

gpu-check: setup $(VENV)/dev-installed
	$(PY) -m benchmarks.gpu_check --out gpu.json $(ARGS)

setup: venv libraries

venv: $(VENV)/installed

# The last line of each recipe marks it as finished, so whatever fails before that is done again. dm_control goes in
# without its dependencies: it asks for labmaze, which has no wheels for Python 3.13 and which its suite never imports.
$(VENV)/installed: requirements.txt
	@$(check_python)
	$(PYTHON) -m venv --clear $(VENV)
	grep -v '^dm_control==' requirements.txt > $(VENV)/requirements.txt
	$(PY) -m pip install -r $(VENV)/requirements.txt
	$(PY) -m pip install --no-deps "$$(grep '^dm_control==' requirements.txt)"
	@touch $@

$(VENV)/dev-installed: requirements-dev.txt requirements-sweep.txt requirements-track.txt $(VENV)/installed
	$(PY) -m pip install -r requirements-dev.txt
	@touch $@

# Draws a picture, and loads OpenCV, whose wheel leaves out libGL, GLib and libxcb. What is missing comes from Debian.
libraries: venv
	@{ $(PY) -c 'import cv2' 2>/dev/null && $(PY) dmc.py; } || \
	{ $(call apt_get,$(SYSTEM_PACKAGES)) && $(PY) -c 'import cv2' && $(PY) dmc.py; } || { \
		echo 'make: OpenCV or a renderer lacks a library; on Debian or Ubuntu: $(call by_hand,$(SYSTEM_PACKAGES))' >&2; \
		exit 1; }

# Installs Debian packages where it may: as root, with apt-get. Else the user is told the command.
apt_get = [ "$$(id -u)" -eq 0 ] && command -v apt-get >/dev/null && echo 'installing $(1)' && apt-get update && \
	DEBIAN_FRONTEND=noninteractive $(APT_INSTALL) $(1)
by_hand = sudo apt-get update && sudo $(APT_INSTALL) $(1)

# Ends with a line that says what to do where PYTHON can't build a virtual environment.
define check_python
command -v "$(PYTHON)" >/dev/null || { \
	echo 'make: there is no $(PYTHON); install Python 3.10 to 3.14, or name one: make PYTHON=python3.12 ...' >&2; \
	exit 1; }; \
"$(PYTHON)" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 14))' || { \
	echo "make: Python 3.10 to 3.14 is needed, and $(PYTHON) is $$("$(PYTHON)" --version 2>&1);" \
		'name another one: make PYTHON=python3.12 ...' >&2; exit 1; }; \
has_venv() { "$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null; }; \
has_venv || { $(call apt_get,$(notdir $(PYTHON))-venv) && has_venv; } || { \
	echo 'make: $(PYTHON) lacks venv or ensurepip; on Debian or Ubuntu:' \
		'$(call by_hand,$(notdir $(PYTHON))-venv)' >&2; exit 1; }
endef

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
