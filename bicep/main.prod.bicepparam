using 'main.bicep'

// For production: three NATS nodes in three zones, each event on three disks before its
// sender is answered.
param environmentName = 'prod'
param location = readEnvironmentVariable('AZURE_LOCATION', 'westeurope')
param tags = { environment: 'prod', workload: 'gridfan' }
param zoneRedundant = true
param purgeProtection = true

param image = readEnvironmentVariable('GRIDFAN_IMAGE', 'ghcr.io/gridfan/gridfan:latest')
param webhookAppId = readEnvironmentVariable('GRIDFAN_WEBHOOK_APP_ID', '00000000-0000-0000-0000-000000000000')
param routerCpu = '1.0'
param routerMinReplicas = 2
param routerMaxReplicas = 10
param subscribersCpu = '1.0'
param subscribersMinReplicas = 2
param subscribersMaxReplicas = 2
param storageMaxBytes = '96GiB'

param natsMode = 'cluster'
param natsNodes = 3
param natsDiskSizeGB = 128
param natsSha256Amd64 = readEnvironmentVariable('GRIDFAN_NATS_SHA256_AMD64', '')
param natsSha256Arm64 = readEnvironmentVariable('GRIDFAN_NATS_SHA256_ARM64', '')
param sshPublicKey = readEnvironmentVariable('GRIDFAN_SSH_PUBLIC_KEY', '')

param logRetentionInDays = 90
param alertEmails = readEnvironmentVariable('GRIDFAN_ALERT_EMAILS', '')

param adminToken = readEnvironmentVariable('GRIDFAN_ADMIN_TOKEN', '')
param natsPassword = readEnvironmentVariable('GRIDFAN_NATS_PASSWORD', '')
param natsSysPassword = readEnvironmentVariable('GRIDFAN_NATS_SYS_PASSWORD', '')
param natsRoutePassword = readEnvironmentVariable('GRIDFAN_NATS_ROUTE_PASSWORD', '')
param natsCa = readEnvironmentVariable('GRIDFAN_NATS_CA', '')
param natsNodeCert = readEnvironmentVariable('GRIDFAN_NATS_NODE_CERT', '')
param natsNodeKey = readEnvironmentVariable('GRIDFAN_NATS_NODE_KEY', '')
