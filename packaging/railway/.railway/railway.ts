// The project on Railway, as `railway config plan` and `railway config apply` read it. railway.toml and railway.json are no longer
// read from 2026-12-01 on.
import { defineRailway, github, preserve, project, service, volume } from "railway/iac";

export default defineRailway(() => {
  // One volume to a service, and no replicas beside a volume.
  const data = volume("data", { region: "us-west2", sizeMB: 1024 });

  const web = service("web", {
    source: github("you/your-app"),
    build: { builder: "DOCKERFILE", dockerfilePath: "Dockerfile" },
    // No start command: it would take the place of the image's entry point, which is Plimsoll.
    // The application's own path on $PORT, not Plimsoll's. Asked only while a deployment starts.
    healthcheck: "/health",
    healthcheckTimeout: 60,
    env: {
      // From SIGTERM to SIGKILL. Unset it is 0: nobody could end anything in order. plimsoll.toml stays below it.
      RAILWAY_DEPLOYMENT_DRAINING_SECONDS: "30",
      // Volumes are mounted as root's; needed where the image has a USER.
      RAILWAY_RUN_UID: "0",
      // Set once in the dashboard, and kept from then on. Without it the control routes answer on loopback only.
      PLIMSOLL_HTTP__API_KEY: preserve(),
      // No PORT: Railway gives one to the application. Plimsoll has a port of its own, 18760.
    },
    volumeMounts: { "/data": data },
  });

  return project("my-app", { resources: [web, data] });
});
