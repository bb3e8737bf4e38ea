using 'main.bicep'

// For trying out: one replica with NATS inside. What it has accepted is gone when the
// replica is replaced, with every new revision; production is main.prod.bicepparam.
param environmentName = 'dev'
param location = readEnvironmentVariable('AZURE_LOCATION', 'westeurope')
param tags = { environment: 'dev', workload: 'gridfan' }
param zoneRedundant = false
param purgeProtection = false

param image = readEnvironmentVariable('GRIDFAN_IMAGE', 'ghcr.io/gridfan/gridfan:latest')
param webhookAppId = readEnvironmentVariable('GRIDFAN_WEBHOOK_APP_ID', '00000000-0000-0000-0000-000000000000')
param routerCpu = '0.5'
param storageMaxBytes = '1GiB'

param natsMode = 'embedded'

param adminToken = readEnvironmentVariable('GRIDFAN_ADMIN_TOKEN', '')
param natsPassword = ''
param natsSysPassword = ''
param natsRoutePassword = ''
param natsCa = ''
param natsNodeCert = ''
param natsNodeKey = ''
