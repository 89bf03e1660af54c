# README's two commands in a container. Unverified: no container engine was at hand where this was written.
#   docker build -t em_repro .                     && docker run --rm -v "$PWD/runs:/em_repro/runs" em_repro
#   docker build -t em_repro_test --target test .  && docker run --rm em_repro_test
FROM python:3.11-bookworm AS installed
WORKDIR /em_repro
COPY . .
RUN make install

FROM installed AS test
CMD ["make", "test"]

FROM installed AS reproduce
CMD ["make", "reproduce"]
