using 'main.bicep'

// What azd deploys, and a start for files of your own: everything comes from the
// environment, with values for trying out where there is nothing.
param environmentName = readEnvironmentVariable('AZURE_ENV_NAME', 'gridfan')
param location = readEnvironmentVariable('AZURE_LOCATION', 'westeurope')
param zoneRedundant = bool(readEnvironmentVariable('GRIDFAN_ZONE_REDUNDANT', 'false'))
param purgeProtection = bool(readEnvironmentVariable('GRIDFAN_PURGE_PROTECTION', 'false'))

param image = readEnvironmentVariable('GRIDFAN_IMAGE', 'ghcr.io/gridfan/gridfan:latest')
param registryServer = readEnvironmentVariable('GRIDFAN_REGISTRY_SERVER', '')
param withRegistry = bool(readEnvironmentVariable('GRIDFAN_WITH_REGISTRY', 'false'))
param deployApps = bool(readEnvironmentVariable('GRIDFAN_DEPLOY_APPS', 'true'))
param webhookAppId = readEnvironmentVariable('GRIDFAN_WEBHOOK_APP_ID', '00000000-0000-0000-0000-000000000000')
param routerCpu = '0.5'
param storageMaxBytes = readEnvironmentVariable('GRIDFAN_STORAGE', '1GiB')

param natsMode = readEnvironmentVariable('GRIDFAN_NATS_MODE', 'embedded')
param natsUrl = readEnvironmentVariable('GRIDFAN_NATS_URL', '')
param natsSha256Amd64 = readEnvironmentVariable('GRIDFAN_NATS_SHA256_AMD64', '')
param natsSha256Arm64 = readEnvironmentVariable('GRIDFAN_NATS_SHA256_ARM64', '')
param sshPublicKey = readEnvironmentVariable('GRIDFAN_SSH_PUBLIC_KEY', '')

param alertEmails = readEnvironmentVariable('GRIDFAN_ALERT_EMAILS', '')

param adminToken = readEnvironmentVariable('GRIDFAN_ADMIN_TOKEN', '')
param natsPassword = readEnvironmentVariable('GRIDFAN_NATS_PASSWORD', '')
param natsSysPassword = readEnvironmentVariable('GRIDFAN_NATS_SYS_PASSWORD', '')
param natsRoutePassword = readEnvironmentVariable('GRIDFAN_NATS_ROUTE_PASSWORD', '')
param natsCa = readEnvironmentVariable('GRIDFAN_NATS_CA', '')
param natsNodeCert = readEnvironmentVariable('GRIDFAN_NATS_NODE_CERT', '')
param natsNodeKey = readEnvironmentVariable('GRIDFAN_NATS_NODE_KEY', '')
