# One image for every role; docker-compose.yml gives each its command.
FROM python:3.13-slim AS build
RUN python -m venv /opt/sharewright
ENV PATH=/opt/sharewright/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY worker ./worker
COPY scheduler ./scheduler
RUN pip install ".[flower]"

FROM python:3.13-slim
# The number is fixed so that the owner of what lies in the volume outlives a rebuild.
RUN useradd --system --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin sharewright \
 && install --directory --owner=sharewright --group=sharewright --mode=0750 /var/lib/sharewright
COPY --from=build /opt/sharewright /opt/sharewright
ENV PATH=/opt/sharewright/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER sharewright
WORKDIR /var/lib/sharewright
CMD ["sharewright", "--help"]
