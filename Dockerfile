# One image for every role; docker-compose.yml gives each its command.
FROM python:3.13-slim AS build
RUN python -m venv /opt/sharewright
ENV PATH=/opt/sharewright/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /source
# The packages first: they change less often than the code, and their layer is kept.
COPY requirements/image.txt ./requirements/
RUN pip install --require-hashes --only-binary :all: -r requirements/image.txt
COPY pyproject.toml README.md LICENSE ./
COPY worker ./worker
COPY scheduler ./scheduler
RUN pip install --no-deps --no-build-isolation .

FROM python:3.13-slim
# The number is fixed so that the owner of what lies in the volume outlives a rebuild.
RUN useradd --system --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin sharewright \
 && install --directory --owner=sharewright --group=sharewright --mode=0750 /var/lib/sharewright
COPY --from=build /opt/sharewright /opt/sharewright
ENV PATH=/opt/sharewright/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER sharewright
WORKDIR /var/lib/sharewright
CMD ["sharewright", "--help"]
