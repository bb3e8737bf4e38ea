using 'subscriptions.bicep'

// azd has the outputs of main.bicep in the environment; README.md tells how to put
// them there without it.
param routerName = readEnvironmentVariable('ROUTER_NAME', 'ca-router')
param webhookAppIdOrUri = readEnvironmentVariable('WEBHOOK_APP_ID', '00000000-0000-0000-0000-000000000000')
param deadLetterStorageName = readEnvironmentVariable('DEADLETTER_STORAGE_NAME', 'stgridfan')
param deadLetterContainerPrefix = readEnvironmentVariable('DEADLETTER_CONTAINER_PREFIX', 'deadletters-')
param subscriptions = [
  {
    name: 'evgs-gridfan-fno'
    topicName: readEnvironmentVariable('FNO_TOPIC_NAME', 'evgt-fno')
    source: 'fno'
  }
  {
    name: 'evgs-gridfan-events'
    topicName: readEnvironmentVariable('EVENTS_TOPIC_NAME', 'evgt-events')
    source: 'events'
  }
]
