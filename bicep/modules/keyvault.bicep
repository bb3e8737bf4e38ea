metadata name = 'Key vault'
metadata description = 'The key vault with the secrets of gridfan, and who may read them.'

import { granteeType, roles } from 'types.bicep'

@description('Required. Name of the vault.')
@minLength(3)
@maxLength(24)
param name string

@description('Required. Region.')
param location string

@description('Required. Tags of the resource.')
param tags { *: string }

@description('Required. Directory that the vault trusts.')
@minLength(36)
@maxLength(36)
param tenantId string

@description('Required. Whether nobody, you included, can purge the vault and its secrets before their retention ends. It cannot be switched off again.')
param purgeProtection bool

@description('Required. Identities that may read all secrets.')
param readers granteeType[]

@description('Required. Resource id of the workspace for its audit log.')
param workspaceId string

@description('Required. Secrets by name. An empty value leaves the secret as it is in the vault.')
@secure()
param contents { *: string }

var given = filter(items(contents), entry => !empty(entry.value))

resource vault 'Microsoft.KeyVault/vaults@2025-05-01' = {
  name: name
  location: location
  tags: tags
  properties: {
    tenantId: tenantId
    sku: { family: 'A', name: 'standard' }
    enableRbacAuthorization: true
    // false is refused once it was true, so it is left out.
    enablePurgeProtection: purgeProtection ? true : null
    softDeleteRetentionInDays: purgeProtection ? 90 : 7
    // Public, because finance and operations reads its secret from outside; who
    // may read is a matter of roles.
    publicNetworkAccess: 'Enabled'
    networkAcls: { bypass: 'AzureServices', defaultAction: 'Allow' }
  }
}

resource secrets 'Microsoft.KeyVault/vaults/secrets@2025-05-01' = [
  for entry in given: {
    parent: vault
    name: entry.key
    properties: {
      value: entry.value
      contentType: 'text/plain'
    }
  }
]

resource mayRead 'Microsoft.Authorization/roleAssignments@2022-04-01' = [
  for reader in readers: {
    name: guid(vault.id, reader.resourceId, roles.keyVaultSecretsUser)
    scope: vault
    properties: {
      principalId: reader.principalId
      principalType: 'ServicePrincipal'
      roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', roles.keyVaultSecretsUser)
    }
  }
]

resource audit 'Microsoft.Insights/diagnosticSettings@2021-05-01-preview' = {
  name: 'to-workspace'
  scope: vault
  properties: {
    workspaceId: workspaceId
    logs: [{ categoryGroup: 'audit', enabled: true }]
  }
}

@description('Resource id of the vault.')
output resourceId string = vault.id

@description('Name of the vault.')
output name string = vault.name

@description('Address of the vault, with a slash at its end.')
output uri string = vault.properties.vaultUri
