metadata name = 'Registry'
metadata description = 'A container registry for the image of gridfan, and who may pull from it.'

import { granteeType, roles } from 'types.bicep'

@description('Required. Name of the registry: letters and digits.')
@minLength(5)
@maxLength(50)
param name string

@description('Required. Region.')
param location string

@description('Required. Tags of the resource.')
param tags { *: string }

@description('Required. Price tier.')
@allowed(['Basic', 'Standard', 'Premium'])
param sku string

@description('Required. Identities that may pull images.')
param pullers granteeType[]

resource registry 'Microsoft.ContainerRegistry/registries@2025-11-01' = {
  name: name
  location: location
  tags: tags
  sku: { name: sku }
  properties: {
    adminUserEnabled: false
    anonymousPullEnabled: false
  }
}

resource mayPull 'Microsoft.Authorization/roleAssignments@2022-04-01' = [
  for puller in pullers: {
    name: guid(registry.id, puller.resourceId, roles.acrPull)
    scope: registry
    properties: {
      principalId: puller.principalId
      principalType: 'ServicePrincipal'
      roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', roles.acrPull)
    }
  }
]

@description('Resource id of the registry.')
output resourceId string = registry.id

@description('Name of the registry.')
output name string = registry.name

@description('Host that images are pulled from.')
output loginServer string = registry.properties.loginServer
