# As docs/operating.md has it: the daemon copied into the application's own image, and put in front of its command.
FROM python:test
COPY --from=plimsoll:test /usr/bin/plimsoll /usr/bin/plimsoll
COPY packages /usr/local/lib/python3.11/dist-packages
COPY srv /srv
ENV PYTHONPATH=/usr/local/lib/python3.11/dist-packages PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
ENTRYPOINT ["plimsoll", "run", "--"]
CMD ["python3", "-m", "uvicorn", "--app-dir", "/srv", "--no-access-log", "service:app"]
HEALTHCHECK --interval=2s CMD ["plimsoll", "health"]
