# README's two commands in a container. Unverified: no container engine was at hand where this was written.
#   docker build -t em_repro .                     && docker run --rm -v "$PWD/runs:/em_repro/runs" em_repro
#   docker build -t em_repro_test --target test .  && docker run --rm em_repro_test
# Installed is what requirements.lock names by hash, file for file (tools/hashes.py writes it, for this platform and Python), and
# then the package without a look at what it needs; `make install` finds it done.
FROM --platform=linux/amd64 python:3.11-bookworm AS installed
WORKDIR /em_repro
COPY . .
RUN python -m venv .venv && .venv/bin/pip install --require-hashes --no-deps -r requirements.lock
RUN .venv/bin/pip install --no-deps --no-build-isolation -e . && touch .venv/.installed && make install

FROM installed AS test
CMD ["make", "test"]

FROM installed AS reproduce
CMD ["make", "reproduce"]
