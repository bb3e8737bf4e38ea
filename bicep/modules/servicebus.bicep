metadata name = 'Service Bus'
metadata description = 'Queues that finance and operations and Dataverse send to, each with a key of its own that can only send; gridfan receives with its identity.'

import { granteeType, roles } from 'types.bicep'

@description('Required. Name of the namespace.')
@minLength(6)
@maxLength(50)
param name string

@description('Required. Region.')
param location string

@description('Required. Tags of the resource.')
param tags { *: string }

@description('Required. Price tier. Basic has no recognition of duplicates.')
@allowed(['Standard', 'Premium'])
param sku string

@description('Required. Names of the queues.')
param queueNames string[]

@description('Required. Identities that may receive from all queues.')
param receivers granteeType[]

@description('Required. Name of the key vault that gets the connection string of each queue, as <queue>-connection.')
@minLength(3)
@maxLength(24)
param vaultName string

@description('Required. Resource id of the workspace for its logs.')
param workspaceId string

resource vault 'Microsoft.KeyVault/vaults@2025-05-01' existing = {
  name: vaultName
}

resource namespace 'Microsoft.ServiceBus/namespaces@2024-01-01' = {
  name: name
  location: location
  tags: tags
  sku: { name: sku, tier: sku }
  properties: {
    minimumTlsVersion: '1.2'
    // The senders know keys only.
    disableLocalAuth: false
    publicNetworkAccess: 'Enabled'
  }
}

resource queues 'Microsoft.ServiceBus/namespaces/queues@2024-01-01' = [
  for queue in queueNames: {
    parent: namespace
    name: queue
    properties: {
      // Cannot be added later.
      requiresDuplicateDetection: true
      duplicateDetectionHistoryTimeWindow: 'P1D'
      lockDuration: 'PT1M'
      // gridfan uses none up while it cannot store; this is for what kills its receiver.
      maxDeliveryCount: 10
      defaultMessageTimeToLive: 'P14D'
      deadLetteringOnMessageExpiration: true
      maxSizeInMegabytes: 5120
    }
  }
]

resource sendRules 'Microsoft.ServiceBus/namespaces/queues/authorizationRules@2024-01-01' = [
  for (queue, i) in queueNames: {
    parent: queues[i]
    name: 'send'
    properties: { rights: ['Send'] }
  }
]

// Without EntityPath, which finance and operations does not take (MicrosoftDocs,
// business-events/how-to/how-to-servicebus.md, read 2026-11).
resource connections 'Microsoft.KeyVault/vaults/secrets@2025-05-01' = [
  for (queue, i) in queueNames: {
    parent: vault
    name: '${queue}-connection'
    properties: {
      value: 'Endpoint=${replace(replace(namespace.properties.serviceBusEndpoint, 'https://', 'sb://'), ':443', '')};SharedAccessKeyName=send;SharedAccessKey=${sendRules[i].listKeys().primaryKey}'
      contentType: 'text/plain'
    }
  }
]

resource mayReceive 'Microsoft.Authorization/roleAssignments@2022-04-01' = [
  for receiver in receivers: {
    name: guid(namespace.id, receiver.resourceId, roles.serviceBusDataReceiver)
    scope: namespace
    properties: {
      principalId: receiver.principalId
      principalType: 'ServicePrincipal'
      roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', roles.serviceBusDataReceiver)
    }
  }
]

resource logs 'Microsoft.Insights/diagnosticSettings@2021-05-01-preview' = {
  name: 'to-workspace'
  scope: namespace
  properties: {
    workspaceId: workspaceId
    logs: [{ categoryGroup: 'allLogs', enabled: true }]
    metrics: [{ category: 'AllMetrics', enabled: true }]
  }
}

@description('Resource id of the namespace.')
output resourceId string = namespace.id

@description('Name of the namespace.')
output name string = namespace.name

@description('Host of the namespace, as gridfan is told it.')
output host string = replace(replace(namespace.properties.serviceBusEndpoint, 'https://', ''), ':443/', '')
