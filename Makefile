# Every target creates .venv when it is missing: `make demo` and `make test` are all the set-up a newcomer needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
KERNELS := CMakeLists.txt $(wildcard softless/attention/kernels/native/*)
# tools that write and run exported files, on top of the first environment: large, and of no other use
EXPORT := $(VENV)/export
EXPORT_STAMP := $(EXPORT)/.installed
WORKERS ?= 2
MARKS ?= not soak and not extra

.PHONY: demo test test-export export-all extra quick soak threads checkpoints tiffs traces crossed ranks counts lint stairs prose bench tables clean

$(STAMP): pyproject.toml $(KERNELS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=24"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

$(EXPORT_STAMP): $(STAMP)
	test -x $(EXPORT)/bin/python || $(BIN)/python -m venv $(EXPORT)
	$(BIN)/python tools/on_top.py $(EXPORT)
	$(EXPORT)/bin/python -m pip install --quiet --disable-pip-version-check $$($(BIN)/python tools/on_top.py openvino executorch coreml) "accelerate>=1.0"
	touch $@

demo: $(STAMP)           ## train SimA and its softmax twin on real handwritten digits, export SimA to ONNX; runs/demo/report.html
	$(BIN)/softless bench twins --recipe digits --out runs/demo --overwrite --export onnx

test: lint               ## under twenty minutes on two idle cores; CI runs it with MARKS="not soak"
	$(BIN)/python -m pytest -m "$(MARKS)" --numprocesses $(WORKERS) --dist loadfile

test-export: $(EXPORT_STAMP)  ## openvino, executorch, coreml, int8, and layers of torchao and accelerate; ten minutes
	SOFTLESS_EXPORT_TOOLS=1 $(EXPORT)/bin/python -m pytest -m "export and not soak" tests --numprocesses $(WORKERS) --dist loadfile
	$(EXPORT)/bin/python -m pytest tests/crossed -k "torchao or accelerate"

export-all: $(EXPORT_STAMP)  ## every registered model, whole, in every format: parity, operators, bytes; hours, and goes on where it stopped
	$(EXPORT)/bin/python -m tests.exporting.record benchmarks/exports.csv

extra: $(STAMP)          ## what CI runs beside: wheels, compilers, ranks, intervals by simulation
	$(BIN)/python -m pytest -m extra --numprocesses $(WORKERS) --dist loadfile

quick: $(STAMP)          ## the tests that take less than ten seconds each
	$(BIN)/python -m pytest -m "not slow and not soak and not extra"

soak: $(STAMP)           ## hours: kills, several ranks, every compiler and sanitizer, and the counts behind docs/reliability.md
	$(BIN)/python -m pytest -m "soak or not soak" tests/training tests/data tests/models/test_weight_files.py tests/models/test_publish.py tests/experiment/test_files.py tests/cli/test_disks.py --count benchmarks/reliability.csv
	$(BIN)/python -m pytest -m soak tests/attention tests/compare tests/exporting tests/lab tests/cli tests/convert tests/layers tests/measure tests/models tests/native tests/ops tests/ranks tests/serving tests/slides
	$(BIN)/python -m lab survival --record

threads: $(STAMP)        ## eight threads of every host and operator, against one; a quarter of an hour
	$(BIN)/python -m pytest -m "soak or not soak" tests/models/test_threads.py

checkpoints: $(STAMP)   ## kinds of checkpoints by the tools that write them, and 300 damaged or hostile ones, counted
	$(BIN)/python -m tests.models.checkpoints benchmarks/checkpoints.csv

tiffs: $(STAMP)          ## TIFFs of all kinds, read and counted: 13,440, of which none may be read otherwise than it was written; minutes
	$(BIN)/python -m tests.data.tiffs benchmarks/tiffs.csv

traces: $(STAMP)         ## every tracer x host x operator, at other sizes too, counted; minutes
	$(BIN)/python -m tests.traces.record benchmarks/traces.csv

crossed: $(STAMP)        ## adapters, hooks, quantized and offloaded weights x every use x every operator, counted; minutes
	$(BIN)/python -m pytest -m "soak or not soak" tests/crossed
	$(BIN)/python -m tests.crossed.record benchmarks/crossed.csv

ranks: $(STAMP)          ## every verb x a signal to one of two ranks, and ranks that differ: seconds, exit codes, sentences; half an hour
	$(BIN)/python -m tests.ranks.record benchmarks/ranks.csv

counts: $(STAMP)         ## every model and operator counted on two devices at two sizes; half an hour
	$(BIN)/python -m lab counts --record

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/checks.py
	$(BIN)/python tools/stairs.py --check
	$(BIN)/python tools/tables.py --check
	$(BIN)/python tools/help_table.py --check
	$(BIN)/python tools/task_fields.py --check

stairs: $(STAMP)         ## counts imports within functions, circles, the longest chain; lists them
	$(BIN)/python tools/stairs.py --list

prose: $(STAMP)          ## counts long lines, long sentences, vague names and missing shapes, and lists them
	$(BIN)/python tools/prose.py --list

bench: $(STAMP)          ## the measured tables of the documents, written to benchmarks/
	$(BIN)/python -m lab operators --record
	$(BIN)/python -m lab operators --ops sima --long --record
	$(BIN)/softless bench twins --recipe digits --seeds 3 --resume --record

tables: $(STAMP)         ## rewrite the generated blocks of README and docs, the table of the command's help, the types of the tasks' groups
	$(BIN)/python tools/tables.py
	$(BIN)/python tools/help_table.py
	$(BIN)/python tools/task_fields.py

clean:
	rm -rf $(VENV) build dist runs .mypy_cache .ruff_cache .import_linter_cache
