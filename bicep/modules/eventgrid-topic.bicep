metadata name = 'Event Grid topic'
metadata description = 'A custom topic, and who may publish to it. Where senders use a key, the key vault gets it. Event subscriptions are in subscriptions.bicep, because Event Grid calls gridfan when they are made.'

import { granteeType, roles } from 'types.bicep'

@description('Required. Name of the topic.')
@minLength(3)
@maxLength(50)
param name string

@description('Required. Region.')
param location string

@description('Required. Tags of the resource.')
param tags { *: string }

@description('Required. What senders post. It cannot be changed later.')
@allowed(['EventGridSchema', 'CloudEventSchemaV1_0'])
param inputSchema string

@description('Required. Whether senders may use the topic\'s keys. Without, they show a token of Entra ID.')
param allowKeys bool

@description('Optional. Identities that may publish.')
param senders granteeType[] = []

@description('Optional. Networks that may publish, as in 203.0.113.0/24. Everybody who has a key or token if there are none.')
param allowedNetworks string[] = []

@description('Required. Name of the key vault that gets the key.')
@minLength(3)
@maxLength(24)
param vaultName string

@description('Required. Name of the secret in the key vault for the key; only with allowKeys.')
@minLength(1)
@maxLength(127)
param keySecretName string

@description('Required. Resource id of the workspace for failures.')
param workspaceId string

resource vault 'Microsoft.KeyVault/vaults@2025-05-01' existing = {
  name: vaultName
}

resource topic 'Microsoft.EventGrid/topics@2025-02-15' = {
  name: name
  location: location
  tags: tags
  identity: { type: 'SystemAssigned' }
  properties: {
    inputSchema: inputSchema
    disableLocalAuth: !allowKeys
    minimumTlsVersionAllowed: '1.2'
    publicNetworkAccess: 'Enabled'
    inboundIpRules: [for network in allowedNetworks: { ipMask: network, action: 'Allow' }]
  }
}

resource key 'Microsoft.KeyVault/vaults/secrets@2025-05-01' = if (allowKeys) {
  parent: vault
  name: keySecretName
  properties: {
    value: topic.listKeys().key1
    contentType: 'text/plain'
  }
}

resource maySend 'Microsoft.Authorization/roleAssignments@2022-04-01' = [
  for sender in senders: {
    name: guid(topic.id, sender.resourceId, roles.eventGridDataSender)
    scope: topic
    properties: {
      principalId: sender.principalId
      principalType: 'ServicePrincipal'
      roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', roles.eventGridDataSender)
    }
  }
]

resource failures 'Microsoft.Insights/diagnosticSettings@2021-05-01-preview' = {
  name: 'to-workspace'
  scope: topic
  properties: {
    workspaceId: workspaceId
    logs: [{ categoryGroup: 'allLogs', enabled: true }]
    metrics: [{ category: 'AllMetrics', enabled: true }]
  }
}

@description('Resource id of the topic.')
output resourceId string = topic.id

@description('Name of the topic.')
output name string = topic.name

@description('Address that senders post to.')
output endpoint string = topic.properties.endpoint

@description('Object id of the topic\'s identity, which writes dead letters.')
output principalId string = topic.identity.principalId
