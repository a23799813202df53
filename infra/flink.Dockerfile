# Flink with Python and this project in it: what `make setup` makes, in an image. Flink itself is the distribution that
# the apache-flink wheel carries, the same files as in the official image.
FROM python:3.11-slim-bookworm
RUN apt-get update \
    && apt-get install --yes --no-install-recommends bash make maven openjdk-17-jdk-headless procps \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /streambank
COPY . .
RUN make setup
ENV PATH=/streambank/.venv/bin:$PATH
